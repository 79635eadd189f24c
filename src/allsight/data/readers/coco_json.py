"""What the formats in COCO's json share: where files lie, checks of the json, and the pictures it lists."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from allsight.data.decode import decode_picture
from allsight.data.readers.found import matches, no_split
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import original_of
from allsight.data.readers.tree import Tree, check_text, name_inside, open_tree
from allsight.types import DataError, Image

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "id": ((int,), "a whole number"),
    "size": ((int, float), "a number"),
    "text": ((str,), "a text"),
    "name": ((str, int), "a text"),
    "list": ((list,), "a list"),
}
"""What a value may be, and how that is called."""

IMAGES = {"id": "id", "file_name": "text", "height": "size", "width": "size"}
# Names are taken as some tools write them: numbers.
CATEGORIES = {"id": "id", "name": "name"}


@dataclass(frozen=True)
class Layout:
    """Where one split lies: its json, named from the data set's folder, and its pictures."""

    tree: Tree
    json: str
    pictures: Tree

    @property
    def where(self) -> str:
        return self.tree.where(self.json)


def find_layout(path: Path, split: str, stem: str) -> Layout:
    """The json `annotations/STEM_SPLIT.json` and the folder of its pictures, or COCO's own names of them.

    Raises:
        DataError: No such split (lists those there are), or no folder of pictures.
    """
    tree = open_tree(path)
    tried = list(_places(stem, split))
    for name, folder in tried:
        if tree.has_file(name) and (pictures := tree.below(folder)) is not None:
            return Layout(tree, name, pictures)
    for name, folder in tried:
        if tree.has_file(name):
            raise DataError(
                f"{tree.where(name)} is there, but not the folder of its pictures; expected {path / folder}"
            )
    raise no_split(path, split, splits_of(tree, stem), str(path / tried[0][0]))


def splits_of(tree: Tree, stem: str) -> list[str]:
    """Splits that have a json of this kind."""
    found = matches(tree.files("annotations"), rf"{stem}_(.+?)(?:2017|2014)?\.json")
    if stem == "instances":
        found += [name for name in tree.folders() if tree.has_file(f"{name}/_annotations.coco.json")]
    return found


def _places(stem: str, split: str) -> Iterable[tuple[str, str]]:
    """Where data sets of this format keep a split, in order of preference: its json, and its pictures."""
    for name in (split, f"{split}2017", f"{split}2014"):
        for folder in (f"images/{name}", name, "images"):
            yield f"annotations/{stem}_{name}.json", folder
    if stem == "instances":
        yield f"{split}/_annotations.coco.json", split
        yield f"{split}.json", split


def load(data: bytes, where: str, needed: Mapping[str, Mapping[str, str]]) -> Mapping[str, Any]:
    """Parse a json of lists of objects.

    Args:
        needed: Name of each list -> key -> kind of value that every entry must have.

    Raises:
        DataError: Not json, or something needed is missing or of another kind; names the entry by its place,
            counted from 1.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not COCO json ({error})") from error
    for part, keys in needed.items():
        entries = tree.get(part) if isinstance(tree, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{where}: no list {part!r}; expected COCO json with {', '.join(needed)}")
        for number, entry in enumerate(entries, 1):
            fault = _fault(entry, keys)
            if fault:
                named = f" (id {entry['id']!r:.40})" if isinstance(entry, dict) and "id" in entry else ""
                raise DataError(f"{where}: entry {number} of {part!r}{named} {fault}")
    return tree


def _fault(entry: Any, keys: Mapping[str, str]) -> str:
    """What is wrong with an entry; empty if nothing is."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.60}; expected an object"
    for key, kind in keys.items():
        types, expected = _KINDS[kind]
        if key not in entry:
            return f"has no {key!r}"
        if type(entry[key]) not in types:
            return f"has {key!r} {entry[key]!r:.60}; expected {expected}"
    return ""


def read_json(tree: Tree, name: str, needed: Mapping[str, Mapping[str, str]]) -> Mapping[str, Any]:
    """`load` of a file.

    Raises:
        DataError: As `load`, or the file cannot be read.
    """
    try:
        data = tree.read(name)
    except OSError as error:
        raise DataError(f"{tree.where(name)}: not COCO json ({error})") from error
    return load(data, tree.where(name), needed)


def refuse_twice(values: Iterable[Any], what: str, where: str) -> None:
    """Refuse a list in which a value occurs again.

    Raises:
        DataError: One does.
    """
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise DataError(f"{where}: {what} {twice[0]!r} occurs more than once ({len(twice)} such)")


class Categories:
    """The classes of a json: labels 0 to n - 1 in the order of the category ids."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], where: str) -> None:
        refuse_twice((entry["id"] for entry in entries), "category id", where)
        self.entries = sorted(entries, key=lambda entry: entry["id"])
        self.names = tuple(check_text(str(entry["name"]), where) for entry in self.entries)
        self.label_of = {entry["id"]: label for label, entry in enumerate(self.entries)}


class ListedPictures:
    """The pictures that a json lists under `images`, in its order.

    Args:
        images: The entries, checked to have `IMAGES`.

    Raises:
        DataError: None, or an id or name twice, or a name that leads out of their folder.
    """

    def __init__(
        self, images: Sequence[Mapping[str, Any]], layout: Layout, split: str, max_pixels: int
    ) -> None:
        if not images:
            raise DataError(f"{layout.where}: no pictures; expected a list 'images' with entries")
        refuse_twice((image["id"] for image in images), "image id", layout.where)
        refuse_twice((image["file_name"] for image in images), "file_name", layout.where)
        self._layout, self._split, self._max_pixels = layout, split, max_pixels
        self._names = PackedStrings(
            name_inside(check_text(image["file_name"], layout.where), layout.where) for image in images
        )
        self.sizes_hw: Int64[np.ndarray, "p 2"] = np.array(
            [(image["height"], image["width"]) for image in images], dtype=np.int64
        )
        self.image_ids: Int64[np.ndarray, " p"] = np.array([image["id"] for image in images], dtype=np.int64)
        self.row_of = {image["id"]: row for row, image in enumerate(images)}
        """Image id -> place; gone once the pictures are chosen."""

    def __len__(self) -> int:
        return len(self._names)

    def id(self, index: int) -> str:
        """`SPLIT/FILE_NAME`."""
        return f"{self._split}/{self._names[index]}"

    def chosen(self, leave_out: tuple[str, ...], allowed: np.ndarray) -> tuple[Int64[np.ndarray, " k"], int]:
        """Numbers of the allowed pictures whose id begins with none of `leave_out`, and how many those cost.

        Raises:
            DataError: Nothing remains.
        """
        kept = np.array([not self.id(row).startswith(leave_out) for row in range(len(self))], dtype=bool)
        pictures = np.flatnonzero(kept & allowed)
        if not len(pictures):
            raise DataError(
                f"{self._layout.where}: nothing remains of {len(self)} pictures (leave_out, only_annotated)"
            )
        return pictures, int((~kept).sum())

    def keep(self, rows: Int64[np.ndarray, " k"]) -> None:
        """Keep only these, which become number 0, 1, ..."""
        self._names = PackedStrings(self._names[row] for row in rows.tolist())
        self.sizes_hw, self.image_ids, self.row_of = self.sizes_hw[rows], self.image_ids[rows], {}

    def original(self, index: int) -> dict[str, bytes]:
        """A picture's file by its ending (see `pictures.original_of`).

        Raises:
            DataError: It is missing or unreadable.
        """
        return original_of(self._bytes(index), self._names[index])

    def read(self, index: int) -> Image:
        """Decode a picture.

        Raises:
            DataError: It is missing, unreadable, or of another size than the json says.
        """
        id = self.id(index)
        image = decode_picture(self._bytes(index), id, max_pixels=self._max_pixels)
        height, width = self.sizes_hw[index].tolist()
        if image.hw_px != (height, width):
            raise DataError(
                f"{id}: the picture is {image.hw_px[1]} x {image.hw_px[0]} (EXIF orientation applied), "
                f"{self._said_by} says {width} x {height}; what is annotated on it would be wrong",
                id,
            )
        return image

    @property
    def _said_by(self) -> str:
        return Path(self._layout.json).name

    def _bytes(self, index: int) -> bytes:
        id, name, pictures = self.id(index), self._names[index], self._layout.pictures
        try:
            return pictures.read(name)
        except FileNotFoundError:
            raise DataError(
                f"{id}: no such picture: {pictures.where(name)} (named in {self._said_by})", id
            ) from None
        except OSError as error:
            raise DataError(
                f"{id}: {pictures.where(name)} cannot be read: {error.strerror or error}", id
            ) from error
