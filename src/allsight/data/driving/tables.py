"""nuScenes tables, row by row: json arrays that may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allsight.types import DataError

NEEDED = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
)
"""Tables that are read; `map` and `visibility` are not."""

_CHUNK = 1 << 20
_SPACE = " \t\r\n,"


class Tables:
    """The tables of one version.

    Args:
        folder: Such as `nuscenes/v1.0-mini`.

    Raises:
        DataError: A table is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        missing = [name for name in NEEDED if not self.file(name).is_file()]
        if missing:
            raise DataError(
                f"{folder}: no table {missing[0]}.json"
                + (f" ({len(missing)} are missing)" if len(missing) > 1 else "")
                + f"; expected {', '.join(NEEDED)}, as in v1.0-trainval_meta.tgz"
            )

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def rows(self, name: str, fields: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """The rows of a table, of which a little at a time is in memory.

        Raises:
            DataError: Not JSON, or a row without a field.
        """
        path = self.file(name)
        for number, row in enumerate(_array(path)):
            if not isinstance(row, dict):
                raise DataError(f"{path}: row {number} is no object")
            for field in fields:
                if field not in row:
                    raise DataError(f"{path}: row {row.get('token', number)} has no field {field!r}")
            yield row

    def dangling(self, name: str, row: Mapping[str, Any], field: str, other: str) -> DataError:
        """The error for a token that no row has."""
        return DataError(
            f"{self.file(name)}: row {row.get('token')}: {field} is {row[field]!r}, which no row of "
            f"{other}.json has; the tables do not belong together, or one is cut short"
        )


def _array(path: Path) -> Iterator[Any]:
    """The items of a json array, decoded one after the other."""
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8") as file:
        text, at, is_over = file.read(_CHUNK), 0, False
        at = _skip(text, at)
        if text[at : at + 1] != "[":
            raise DataError(f"{path}: not a json array")
        at += 1
        while True:
            at = _skip(text, at)
            if text[at : at + 1] == "]":
                return
            try:
                item, end = decode(text, at)
                # An object is whole when it is decoded; other items are refused by `rows`.
                yield item
                at = end
            except ValueError as error:
                if is_over:
                    raise DataError(
                        f"{path}: damaged or cut short after {file.tell()} bytes ({error})"
                    ) from None
                more = file.read(_CHUNK)
                is_over = not more
                text, at = text[at:] + more, 0


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
