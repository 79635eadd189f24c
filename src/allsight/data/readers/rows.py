"""Rows of a JSONL or CSV file by their number, read from the file when asked for."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

from allsight.data.readers.lines import Lines
from allsight.types import DataError

Row = Mapping[str, Any]

LONGEST_FIELD = 1 << 26
"""Characters in a field of a CSV, so that a quotation mark without its partner does not swallow a whole file.
What a sample may hold is another matter (`max_characters`)."""


@runtime_checkable
class Rows(Protocol):
    """A row is a mapping; empty fields of a CSV are left out of it."""

    path: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """Raises OSError, and DataError where the row cannot be read."""
        ...

    def __iter__(self) -> Iterator[Row | DataError]:
        """All rows in order, and in the place of one that cannot be read what is wrong with it.

        Raises OSError, and DataError where no more rows can be told apart."""
        ...

    def number(self, index: int) -> int:
        """What people call the row: its number in the file, from 1; a header counts."""
        ...


def open_rows(path: Path) -> Rows:
    """The rows of a .jsonl or .csv file.

    Raises:
        DataError: It cannot be read, or is no CSV.
    """
    try:
        return CsvRows(path) if path.suffix == ".csv" else JsonRows(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


class JsonRows:
    """A JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = Lines(path)
        self._numbers = np.array([n for n, line in enumerate(self._lines) if line.strip()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Row:
        return self._parsed(self._lines[int(self._numbers[index])], index)

    def __iter__(self) -> Iterator[Row | DataError]:
        lines = (line for line in self._lines if line.strip())
        return (_row_or_fault(self._parsed, line, index) for index, line in enumerate(lines))

    def number(self, index: int) -> int:
        return int(self._numbers[index]) + 1

    def _parsed(self, line: bytes, index: int) -> Row:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}, line {self.number(index)}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{self.path}, line {self.number(index)}: {row!r:.60}; expected an object")
        return row


class CsvRows:
    """Comma-separated values under a header; fields in double quotes may hold commas and line breaks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header: list[str] = []
        bounds = []
        with path.open("rb") as file:
            # A row may go over several lines, so the parser is asked how far it has read.
            for fields in self._records(file):
                if not self._header:
                    self._header = [field.strip() for field in fields]
                bounds.append(file.tell())
        if bounds:
            _check_utf8(self._header, f"{path}, header")
        if len(set(self._header)) < len(self._header):
            raise DataError(f"{path}: the header is {self._header}; expected names of columns, each once")
        self._bounds = np.array(bounds, dtype=np.int64)

    def __len__(self) -> int:
        return max(0, len(self._bounds) - 1)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        with self.path.open("rb") as file:
            file.seek(int(self._bounds[index]))
            return self._row(next(self._records(file)), index)

    def __iter__(self) -> Iterator[Row | DataError]:
        with self.path.open("rb") as file:
            records = self._records(file)
            next(records, None)
            for index, fields in enumerate(records):
                yield _row_or_fault(self._row, fields, index)

    def number(self, index: int) -> int:
        return index + 2

    def _row(self, fields: list[str], index: int) -> Row:
        if len(fields) != len(self._header):
            raise DataError(
                f"{self.path}, row {self.number(index)}: {len(fields)} fields; expected {len(self._header)}, "
                "as in the header"
            )
        _check_utf8(fields, f"{self.path}, row {self.number(index)}")
        return {name: field for name, field in zip(self._header, fields, strict=True) if field != ""}

    def _records(self, file: IO[bytes]) -> Iterator[list[str]]:
        # The limit is one for the process; it is never lowered here.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
        # Bytes that are not UTF-8 pass as half characters, so that they spoil no more than their row.
        lines = (line.decode("utf-8-sig", "surrogateescape") for line in iter(file.readline, b""))
        try:
            yield from (row for row in csv.reader(lines, strict=True) if row)
        except csv.Error as error:
            raise DataError(f"{self.path}: not CSV before byte {file.tell()} ({error})") from None


def _row_or_fault(parse: Callable[[Any, int], Row], record: Any, index: int) -> Row | DataError:
    try:
        return parse(record, index)
    except DataError as fault:
        return fault


def _check_utf8(fields: list[str], where: str) -> None:
    for field in fields:
        try:
            field.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: not UTF-8 (character {error.start + 1} of {field[:40]!r})") from None
