"""The fields of a manifest's row: checked when it is opened, turned into targets when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from allsight.data.readers.rows import Row
from allsight.data.readers.tree import check_text
from allsight.types import DataError, Image, Modality, Objects

_TEXTS = ("image", "text", "question", "caption", "answer")
_LISTS = ("captions", "answers", "boxes", "labels")


def check_row(row: Row, where: str) -> None:
    """Make sure that each field is of its kind.

    Raises:
        DataError: One is not, or there is neither `image` nor `text`.
    """
    if "image" not in row and "text" not in row:
        raise DataError(f"{where}: neither 'image' nor 'text'; fields are {', '.join(row)[:200]}")
    for name in _TEXTS:
        if name in row and not isinstance(row[name], str):
            raise DataError(f"{where}: {name!r} is {row[name]!r:.60}; expected a text")
    for name in _LISTS:
        if name in row and _list(row[name]) is None:
            raise DataError(f"{where}: {name!r} is {row[name]!r:.60}; expected a list")
    for name in ("captions", "answers"):
        for text in _list(row.get(name)) or ():
            if not isinstance(text, str):
                raise DataError(f"{where}: {text!r:.60} among {name!r}; expected texts")
            check_text(text, where)
    for name in _TEXTS:
        check_text(row.get(name, ""), where)
    keys = [row["label"]] if "label" in row else []
    keys += _list(row.get("labels")) or []
    if not all(type(key) in (int, str) for key in keys) or any(type(k) is int and k < 0 for k in keys):
        raise DataError(f"{where}: a class is {keys!r:.60}; expected a name, or a number from 0 on")
    boxes = _list(row.get("boxes")) or []
    if len(boxes) != len(_list(row.get("labels")) or []):
        raise DataError(f"{where}: {len(boxes)} boxes; expected as many 'labels', and both or neither")
    if boxes and "image" not in row:
        raise DataError(f"{where}: 'boxes' without 'image'")
    if any(
        not isinstance(b, list) or len(b) != 4 or not all(type(v) in (int, float) for v in b) for b in boxes
    ):
        raise DataError(f"{where}: a box is not four numbers left, top, right, bottom")


def class_keys(row: Row) -> set[str | int]:
    """What a row calls its classes; digits in a text are a number, as CSV has no numbers."""
    keys = {*(_list(row.get("labels")) or ()), *([row["label"]] if "label" in row else [])}
    return {class_key(key) for key in keys}


def class_key(key: str | int) -> str | int:
    """A class as the table of labels has it."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else key


def texts_of(row: Row) -> dict[str, tuple[str, ...]]:
    """The targets `captions` and `answers`, where the row has them."""
    found = {}
    for one, many in (("caption", "captions"), ("answer", "answers")):
        if one in row or many in row:
            found[many] = (*([row[one]] if one in row else []), *(_list(row.get(many)) or ()))
    return found


def objects_of(row: Row, label_of: Mapping[str | int, int], image: Modality | None, id: str) -> Objects:
    """The target `objects`: boxes clipped to the picture.

    Raises:
        DataError: A box is not finite, or has no area in the picture.
    """
    assert isinstance(image, Image)
    height, width = image.hw_px
    boxes = np.array(_list(row["boxes"]), dtype=np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0, (width, height, width, height))
    good = np.isfinite(boxes).all(1) & (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    if not good.all():
        number = int(np.flatnonzero(~good)[0])
        raise DataError(
            f"{id}: box {number + 1} is {boxes[number].tolist()}; expected left < right, top < bottom, and a "
            f"part of it in the picture of {width} x {height}",
            id,
        )
    labels = [label_of[class_key(key)] for key in _list(row["labels"]) or ()]
    return Objects(
        torch.from_numpy(clipped.astype(np.float32)),
        torch.tensor(labels, dtype=torch.int64),
        is_crowd=torch.zeros(len(labels), dtype=torch.bool),
    )


def _list(value: Any) -> list[Any] | None:
    """A list, or one written as JSON in a field of a CSV; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None
