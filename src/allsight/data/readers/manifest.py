"""Tables of samples, a row each, in JSONL or CSV: the format `manifest:PATH`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allsight.data.decode import MAX_PIXELS, decode_picture
from allsight.data.listings import SampleClasses
from allsight.data.readers.captions import MAX_CHARACTERS, check_length
from allsight.data.readers.classes import read_classes
from allsight.data.readers.folders import read_file
from allsight.data.readers.found import Found, no_split
from allsight.data.readers.manifest_rows import check_row, class_key, class_keys, objects_of, texts_of
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import notes, original_of
from allsight.data.readers.rows import Row, Rows, open_rows
from allsight.data.readers.tree import Tree, name_inside
from allsight.types import DataError, Modality, Sample, Text

SUFFIXES = (".jsonl", ".csv")


class Manifest:
    """Reads PATH/SPLIT.jsonl or PATH/SPLIT.csv, or a single such file whose rows have a field `split`.

    A row is a sample, called `SPLIT/NUMBER` after its place in the file, or `SPLIT/ID`. Its fields (all
    optional, but a row needs `image` or `text`; others are passed over):

    - `image`: a picture's file, from the manifest's folder -> input `image`
    - `text`, `question`: -> inputs of these names
    - `label`: name or number of its class -> target `label`
    - `caption` (a text) or `captions` (a list) -> target `captions`
    - `answer` (a text) or `answers` (a list) -> target `answers`
    - `boxes`: [[left, top, right, bottom], ...] in pixels, and `labels`, a class each -> target `objects`
    - `id`: the name of the sample; `split`: where one file holds all

    In a CSV, `boxes` and lists are written as JSON. Classes are those of `classes.json` beside the manifest;
    else the names that occur in `train` (in this split, where there is no `train`), sorted. Numbers are
    indices of classes; without names the classes are called "0" to the largest that occurs.

    Args:
        path: Folder or file.
        split: Which split.
        classes: Names of the classes in order.
        outside: Whether pictures may lie outside the manifest's folder (absolute names, or `..`).
        max_characters: A sample with a longer text is refused when it is read.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split, no rows, or none that can be read; a row with a field of another kind, a
            class that is not known, an id twice, or a picture outside the folder. On reading: the row is not
            JSON, not UTF-8 or has too many or too few fields; the picture is missing or unreadable; a box is
            not finite or has no area in the picture; a text is too long.
    """

    reads_single_files = True

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        outside: bool = False,
        max_characters: int = MAX_CHARACTERS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"manifest:{path.name}"
        self.split = split
        self._max_characters, self._max_pixels = max_characters, max_pixels
        self._rows = _open(path, split)
        self._folder = self._rows.path.parent
        chosen, ids, keys_of, faults = [], [], [], []
        for index, row in enumerate(self._rows):
            if isinstance(row, DataError):
                # Of which split it is, nobody can say, so where one file holds all it counts in each.
                faults.append(row)
                row = {}
            else:
                if path.is_file() and row.get("split") != split:
                    continue
                where = f"{self._rows.path}, row {self._rows.number(index)}"
                check_row(row, where)
                if not outside and "image" in row:
                    name_inside(row["image"], where)
            chosen.append(index)
            ids.append(str(row.get("id", self._rows.number(index))))
            keys_of.append(class_keys(row))
        if not len(self._rows):
            raise DataError(f"{self._rows.path}: the file has no rows; expected a sample in each")
        if len(faults) == len(chosen):
            raise faults[0] if len(faults) == len(self._rows) else _no_rows(path, split)
        if len(set(ids)) < len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise DataError(f"{self._rows.path}: the id {twice!r} occurs twice")
        keys = {key for some in keys_of for key in some}
        self._chosen = np.array(chosen, dtype=np.int64)
        self._ids = PackedStrings(f"{split}/{id}" for id in ids)
        table = read_classes(self._folder / "classes.json")
        known = table.keys if table else ()
        self.classes = classes or (table.names if table else ()) or _found_classes(path, split, keys)
        names = classes or known or self.classes
        # Names that are numbers themselves (years) come first.
        self._label_of: Mapping[str | int, int] = {
            **{n: n for n in range(len(names))},
            **{class_key(name): n for n, name in enumerate(names)},
        }
        unknown = next((key for key in sorted(keys, key=str) if key not in self._label_of), None)
        if unknown is not None:
            raise DataError(f"{self._rows.path}: class {unknown!r} is none of the {len(names)} classes")
        self._classes_of = SampleClasses.of_sets([{self._label_of[key] for key in some} for some in keys_of])
        self.notes = notes(
            (len(self._rows) - len(chosen), "rows of other splits passed over"),
            (len(faults), f"rows cannot be read, the first: {faults[0] if faults else ''}"),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        if path.is_file() and path.suffix not in SUFFIXES:
            return None
        splits = _splits(path)
        return (
            Found(f"a table of samples with the splits {', '.join(splits)}", tuple(splits))
            if splits
            else None
        )

    def sample_classes(self) -> SampleClasses:
        """The classes that each row names."""
        return self._classes_of

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        id = self._ids[index]
        row = self._row(index, id)
        inputs: dict[str, Modality] = {}
        targets: dict[str, Any] = texts_of(row)
        for name in ("text", "question"):
            if name in row:
                inputs[name] = Text(row[name])
        texts = [row[name] for name in ("text", "question") if name in row]
        check_length([*texts, *(t for many in targets.values() for t in many)], id, self._max_characters)
        if "image" in row:
            data = self._bytes(row["image"], id)
            inputs = {"image": decode_picture(data, id, max_pixels=self._max_pixels), **inputs}
        if "label" in row:
            targets["label"] = self._label_of[class_key(row["label"])]
        if "boxes" in row:
            targets["objects"] = objects_of(row, self._label_of, inputs.get("image"), id)
        return Sample(id, inputs, targets)

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        id = self._ids[index]
        name = self._row(index, id).get("image", "")
        return original_of(self._bytes(name, id), name) if name else {}

    def _row(self, index: int, id: str) -> Row:
        try:
            return self._rows[int(self._chosen[index])]
        except DataError as fault:
            raise DataError(f"{id}: {fault}", id) from None
        except OSError as error:
            raise DataError(f"{id}: {self._rows.path}: {error.strerror or error}", id) from error

    def _bytes(self, name: str, id: str) -> bytes:
        file = self._folder / name
        try:
            return read_file(str(file))
        except FileNotFoundError:
            raise DataError(f"{id}: no such picture: {file} (named in {self._rows.path.name})", id) from None
        except OSError as error:
            raise DataError(f"{id}: {file} cannot be read: {error.strerror or error}", id) from error


def _open(path: Path, split: str) -> Rows:
    if path.is_file():
        return open_rows(path)
    for suffix in SUFFIXES:
        if (path / f"{split}{suffix}").is_file():
            return open_rows(path / f"{split}{suffix}")
    raise no_split(path, split, _splits(path), f"{path / split}.jsonl or .csv")


def _no_rows(path: Path, split: str) -> DataError:
    return no_split(path, split, _splits(path), "rows with this `split`, or a file of this name")


def _readable(rows: Rows) -> Iterator[Row]:
    return (row for row in rows if not isinstance(row, DataError))


def _splits(path: Path) -> list[str]:
    """Splits with a file of their own; or those that a single file's rows name."""
    if path.is_file():
        return sorted({str(row["split"]) for row in _readable(open_rows(path)) if "split" in row})
    return sorted({file.stem for suffix in SUFFIXES for file in path.glob(f"*{suffix}")})


def _found_classes(path: Path, split: str, keys: set[str | int]) -> tuple[str, ...]:
    if split != "train" and "train" in _splits(path):
        rows = _readable(open_rows(path) if path.is_file() else _open(path, "train"))
        keys = {k for row in rows if path.is_dir() or row.get("split") == "train" for k in class_keys(row)}
    numbers = [key for key in keys if isinstance(key, int)]
    if numbers:
        return tuple(map(str, range(max(numbers) + 1)))
    return tuple(sorted(map(str, keys)))
