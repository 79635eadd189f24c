"""From the columns of a table to samples: what Parquet and `datasets` folders share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from allsight.config import ConfigError, did_you_mean
from allsight.data.decode import MAX_PIXELS, decode_picture
from allsight.data.listings import SampleClasses
from allsight.data.readers.captions import MAX_CHARACTERS, check_length
from allsight.data.readers.pictures import notes, original_of
from allsight.data.readers.table_rows import TableRows
from allsight.types import DataError, Modality, Sample, Text

_USUAL = {
    "image": ("image", "img", "picture", "jpg"),
    "label": ("label", "labels", "class", "fine_label"),
    "caption": ("caption", "captions", "sentences"),
    "text": ("text",),
}
"""Names that a column of each role usually has, in order of preference."""


class TableSamples(ABC):
    """Samples from rows, called `SPLIT/ROW`. A format says how it is called and how its rows are opened.

    Columns become: `image` (bytes of a file, or a struct with `bytes`) the input `image`; `label` (a number
    or a name) the target `label`; `caption` (a text or a list of texts) the target `captions`; `text` the
    input `text`. Classes are named as the features of `datasets` in the schema say; else names are sorted,
    numbers called "0" to the largest. The label -1 means that there is none.

    Args:
        path: Folder, or one file where the format has such.
        split: Which split.
        image, label, caption, text: Names of columns, where they are not the usual ones.
        max_characters: A row with a longer text is refused when it is read.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        ConfigError: pyarrow is not installed; no such column.
        DataError: No such split; a file is damaged or lies outside the folder; no rows, or no column of
            inputs. On reading: a row holds no picture, or one that cannot be decoded; a text is too long.
    """

    format: ClassVar[str]

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        image: str = "",
        label: str = "",
        caption: str = "",
        text: str = "",
        max_characters: int = MAX_CHARACTERS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name, self.split = f"{self.format}:{path.name}", split
        rows = self.open_rows(path, split)
        self._rows, self._max_characters, self._max_pixels = rows, max_characters, max_pixels
        there = rows.schema.names
        given = {"image": image, "label": label, "caption": caption, "text": text}
        self._columns = _columns(there, {role: column for role, column in given.items() if column})
        if not len(rows) or not {"image", "text"} & set(self._columns):
            raise DataError(
                f"{self.name} ({split}): {len(rows)} rows with the columns {', '.join(there)}; "
                "expected image or text"
            )
        self.classes: tuple[str, ...] = ()
        self._labels: np.ndarray | None = None
        if "label" in self._columns:
            self.classes, self._labels = _labels(rows, self._columns["label"])
        unlabelled = 0 if self._labels is None else int((self._labels < 0).sum())
        self.notes = notes((unlabelled, "rows without a label"))

    @abstractmethod
    def open_rows(self, path: Path, split: str) -> TableRows:
        """The rows of a split."""
        ...

    def sample_classes(self) -> SampleClasses:
        """The class of each sample that has one."""
        return SampleClasses.one_at_most(np.full(len(self), -1) if self._labels is None else self._labels)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        id = f"{self.split}/{index}"
        row = self._row(index, id)
        inputs: dict[str, Modality] = {}
        targets: dict[str, Any] = {}
        if "image" in self._columns:
            inputs["image"] = decode_picture(
                _bytes(row[self._columns["image"]], id), id, max_pixels=self._max_pixels
            )
        if "text" in self._columns:
            inputs["text"] = Text(_text(row[self._columns["text"]], id))
        if "caption" in self._columns:
            given = row[self._columns["caption"]]
            texts = given if isinstance(given, list) else [given]
            targets["captions"] = tuple(_text(text, id) for text in texts)
        check_length(
            [part.string for part in inputs.values() if isinstance(part, Text)], id, self._max_characters
        )
        check_length(targets.get("captions", ()), id, self._max_characters)
        if self._labels is not None and self._labels[index] >= 0:
            targets["label"] = int(self._labels[index])
        return Sample(id, inputs, targets)

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        id = f"{self.split}/{index}"
        column = self._columns.get("image")
        return original_of(_bytes(self._row(index, id)[column], id)) if column else {}

    def _row(self, index: int, id: str) -> Mapping[str, Any]:
        wanted = [column for role, column in self._columns.items() if role != "label"]
        try:
            return self._rows.row(index, wanted)
        except DataError as error:
            raise DataError(f"{id}: {error}", id) from None


def _columns(there: list[str], given: Mapping[str, str]) -> dict[str, str]:
    for role, column in given.items():
        if column not in there:
            raise ConfigError(f"data: no column {column!r} for {role}{did_you_mean(column, there)}")
    usual = {role: next((name for name in names if name in there), "") for role, names in _USUAL.items()}
    return {role: column for role, column in {**usual, **given}.items() if column}


def _labels(rows: TableRows, column: str) -> tuple[tuple[str, ...], np.ndarray]:
    values = rows.column(column)
    names = _feature_names(rows.schema, column)
    if all(type(value) is int for value in values):
        labels = np.array(values, dtype=np.int64)
        names = names or tuple(map(str, range(int(labels.max()) + 1)))
        if labels.max() >= len(names) or labels.min() < -1:
            raise DataError(
                f"column {column!r}: labels {labels.min()} to {labels.max()}; expected -1 to {len(names) - 1}"
            )
        return names, labels
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"column {column!r}: expected whole numbers or names, got {values[0]!r:.60}")
    names = names or tuple(sorted(set(values)))
    index_of = {name: index for index, name in enumerate(names)}
    unknown = next((value for value in values if value not in index_of), None)
    if unknown is not None:
        raise DataError(f"column {column!r}: class {unknown!r} is none of the {len(names)} of the schema")
    return names, np.array([index_of[value] for value in values], dtype=np.int64)


def _feature_names(schema: Any, column: str) -> tuple[str, ...]:
    """Class names that `datasets` wrote into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _bytes(value: Any, id: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        path = value.get("path") if isinstance(value, dict) else None
        only = f", only the path {path!r:.80}" if path else ""
        raise DataError(
            f"{id}: the row holds no bytes of a picture{only}; save the data set with its pictures", id
        )
    return data


def _text(value: Any, id: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{id}: the row holds {value!r:.60}; expected a text", id)
    return value
