"""Pictures with one class each: the format `imagefolder:PATH`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from allsight.data.decode import MAX_PIXELS, LeastSize, decode_picture
from allsight.data.listings import SampleClasses
from allsight.data.readers.classes import read_classes
from allsight.data.readers.file_names import is_hidden
from allsight.data.readers.files import Files, has_split, open_split
from allsight.data.readers.folders import FolderFiles
from allsight.data.readers.found import Found, parts_of_splits
from allsight.data.readers.pictures import (
    is_picture,
    leave_out_of,
    link_notes,
    notes,
    original,
    pictures_of,
    read_or_refuse,
)
from allsight.data.readers.tree import Tree
from allsight.types import DataError, Sample


class ImageFolder:
    """Reads PATH/SPLIT/CLASS/PICTURE, from folders, zips, tars or tar shards (see `files.open_split`).

    Args:
        path: The data set's folder, or an archive that holds its splits.
        split: Which split; samples are called `SPLIT/NAME`.
        labels: Where a picture's class stands. `folder`: its first folder. `prefix`: its name up to the last
            underscore (`n02124075_12.jpg`). `file:NAME`: in the file PATH/NAME, where `{split}` is replaced:
            JSON {picture: class}, or lines of picture and class (a space or comma between). `auto`: `folder`
            if pictures lie in folders, else `prefix`.
        leave_out: Pictures whose id begins with one of these are left out.
        min_side_px: JPEGs of more than twice this size may be decoded smaller, never below it.
        max_pixels: Larger pictures are refused when they are read.

    Classes are those of `PATH/classes.json` if it exists, in its order; else those of the split `train` (of
    this split, where there is no `train`), sorted as text, or by value where a label file has numbers.

    Raises:
        DataError: No such split; no pictures; a class folder of `train` without pictures (elsewhere it is
            noted); a picture whose class is unknown; a picture that occurs twice.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        labels: str = "auto",
        leave_out: tuple[str, ...] = (),
        min_side_px: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"imagefolder:{path.name}"
        self.split = split
        self._max_pixels = max_pixels
        self._min_hw_px = None if min_side_px is None else (min_side_px, min_side_px)
        every = open_split(path, split)
        pictures = pictures_of(every, f"{path} ({split})")
        empty = _empty_folders(every, pictures) if isinstance(every, FolderFiles) else []
        if empty and split == "train":
            more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise DataError(
                f"{path / split / empty[0]}: class folder without pictures{more}; fill or remove it"
            )
        self._files, left_out = leave_out_of(pictures, split, leave_out)
        self.notes = (
            *notes(
                (len(every.names) - len(pictures.names), "files that are no pictures passed over"),
                (left_out, "pictures left out"),
                (len(empty), "class folders without pictures"),
            ),
            *link_notes(every),
        )
        keys = _class_keys(self._files.names, labels, path, split)
        table = read_classes(path / "classes.json") if path.is_dir() else None
        if table is not None:
            order, self.classes = table.keys, table.names
        else:
            order = self.classes = _found_classes(path, split, labels, keys)
        if table is not None and labels.startswith("file:") and all(key.isdecimal() for key in keys):
            order = tuple(str(n) for n in range(len(order)))
        self.labels: Int64[np.ndarray, " n"] = _to_indices(keys, order, self._files, split)

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        parts = parts_of_splits(tree)
        splits = [split for split in parts if _has_classes(tree, split, parts[split][0])]
        if not set(splits) & set(_USUAL_SPLITS):
            return None
        return Found(f"pictures in class folders for {', '.join(splits)}", tuple(splits))

    def sample_classes(self) -> SampleClasses:
        """The class of each sample."""
        return SampleClasses.one_each(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, self._min_hw_px)

    def reduced(self, index: int, least: LeastSize) -> Sample:
        """A sample whose picture may be decoded smaller, never below `least`."""
        return self._sample(index, self._min_hw_px or least)

    def _sample(self, index: int, least: tuple[int, int] | LeastSize | None) -> Sample:
        id = f"{self.split}/{self._files.names[index]}"
        data = read_or_refuse(self._files, index, id)
        image = decode_picture(data, id, min_hw_px=least, max_pixels=self._max_pixels)
        return Sample(id, {"image": image}, {"label": int(self.labels[index])})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return original(self._files, index, f"{self.split}/{self._files.names[index]}")


_USUAL_SPLITS = ("train", "training", "val", "valid", "validation", "test")
_NO_CLASSES = (*_USUAL_SPLITS, "images", "labels", "annotations", "masks")
"""Folders that other formats have where class folders are here."""


def _has_classes(tree: Tree, split: str, first: str) -> bool:
    """Whether the first pictures of a split lie in class folders, or have a stated class in their names."""
    if split in tree.folders():
        classes = tree.folders(split)
        some = [name for name in classes if name not in _NO_CLASSES][:3]
        if some:
            return any(is_picture(file) for name in some for file in tree.files(f"{split}/{name}"))
    part = tree.below(first)
    names = list(part.names()) if part is not None else []
    pictures = [name for name in names if is_picture(name)]
    # Shards of pictures and texts side by side are of another format.
    if not pictures or len(pictures) < len(names):
        return False
    nested = all(name.removeprefix(f"{split}/").count("/") == 1 for name in pictures)
    return nested or (tree.has_file("classes.json") and all("_" in name for name in pictures))


def _empty_folders(every: FolderFiles, pictures: Files) -> list[str]:
    filled = {name.split("/")[0] for name in pictures.names if "/" in name}
    there = {entry.name for entry in every.root.iterdir() if entry.is_dir() and not is_hidden(entry.name)}
    return sorted(there - filled - set(every.again))


def _class_keys(names: Iterable[str], labels: str, path: Path, split: str) -> list[str]:
    names = list(names)
    if labels.startswith("file:"):
        return _keys_from_file(names, path / labels.removeprefix("file:").format(split=split))
    if labels not in ("auto", "folder", "prefix"):
        raise DataError(f"labels={labels!r}; expected auto, folder, prefix or file:NAME")
    if labels == "auto":
        loose = next((name for name in names if "/" not in name), None)
        nested = next((name for name in names if "/" in name), None)
        if loose is not None and nested is not None:
            raise DataError(
                f"{path} ({split}): {nested} lies in a folder and {loose} in none, so it is unclear where "
                "classes stand; tidy up, or set labels to folder, prefix or file:NAME"
            )
        labels = "folder" if loose is None else "prefix"
    mark = "/" if labels == "folder" else "_"
    wrong = next((name for name in names if mark not in name.removeprefix("_")), None)
    if wrong is not None:
        expected = "CLASS/PICTURE" if labels == "folder" else "CLASS_NUMBER, such as cat_12.jpg"
        raise DataError(f"{path} ({split}): {wrong} has no class in its name; expected {expected}")
    if labels == "folder":
        return [name.split("/", 1)[0] for name in names]
    return [name.rsplit("/", 1)[-1].rsplit("_", 1)[0] for name in names]


def _keys_from_file(names: list[str], path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: the file of labels cannot be read: {error.strerror or error}") from error
    if path.suffix == ".json":
        try:
            table = {str(name): str(key) for name, key in json.loads(text).items()}
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path}: expected JSON {{picture: class}} ({error})") from error
    else:
        table = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            parts = line.rsplit("," if "," in line else None, 1)
            if len(parts) != 2:
                raise DataError(f"{path}, line {number}: expected a picture and its class, got {line!r}")
            table[parts[0].strip()] = parts[1].strip()
    missing = next((name for name in names if name not in table), None)
    if missing is not None:
        raise DataError(
            f"{path}: no class for picture {missing}; it has {len(table)} of {len(names)} pictures"
        )
    return [table[name] for name in names]


def _found_classes(path: Path, split: str, labels: str, keys: list[str]) -> tuple[str, ...]:
    if split != "train" and has_split(path, "train"):
        train = pictures_of(open_split(path, "train"), f"{path} (train)")
        keys = _class_keys(train.names, labels, path, "train")
    distinct = set(keys)
    if labels.startswith("file:") and all(key.isdecimal() for key in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def _to_indices(keys: list[str], order: tuple[str, ...], files: Files, split: str) -> Int64[np.ndarray, " n"]:
    index_of = {key: index for index, key in enumerate(order)}
    labels = np.empty(len(keys), dtype=np.int64)
    for place, key in enumerate(keys):
        index = index_of.get(key)
        if index is None:
            near = get_close_matches(key, order, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{split}/{files.names[place]}: class {key!r} is none of the {len(order)} classes "
                f"(of classes.json, or of the split train){hint}"
            )
        labels[place] = index
    return labels
