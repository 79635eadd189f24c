"""Rows of Arrow tables, from Parquet files or from Arrow files that `datasets` saved.

What is open belongs to a process: it is left out when a reader is pickled, and opened again when needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from allsight.data.readers.extras import needed_module
from allsight.types import DataError


@runtime_checkable
class TableRows(Protocol):
    """Rows of some files of one schema (`pyarrow.Schema`)."""

    schema: Any

    def __len__(self) -> int: ...

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        """Some fields of a row. Raises DataError."""
        ...

    def column(self, name: str) -> list[Any]:
        """One field of all rows. Raises DataError."""
        ...


class ParquetRows:
    """Parquet files end to end. The row group last read is kept, so rows in order cost little."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        parquet = needed_module("pyarrow.parquet", "parquet", "parquet")
        counts, places = [], []
        self.schema: Any = None
        for number, file in enumerate(self.files):
            try:
                opened = parquet.ParquetFile(file)
            except (OSError, ValueError) as error:
                raise DataError(f"{file}: not Parquet, or cut short ({_one_line(error)})") from None
            self.schema = _same(self.schema, opened.schema_arrow, file)
            for group in range(opened.num_row_groups):
                counts.append(opened.metadata.row_group(group).num_rows)
                places.append((number, group))
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._places = np.array(places, dtype=np.int32).reshape(-1, 2)
        self._kept: Any = (None, None)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": (None, None)}

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group = int(np.searchsorted(self._ends, index, side="right"))
        key = (group, *columns)
        if self._kept[0] != key:
            self._kept = (key, self._read(group, columns))
        start = int(self._ends[group - 1]) if group else 0
        return self._kept[1].slice(index - start, 1).to_pylist()[0]

    def column(self, name: str) -> list[Any]:
        return [v for group in range(len(self._ends)) for v in self._read(group, [name])[name].to_pylist()]

    def _read(self, group: int, columns: Sequence[str]) -> Any:
        parquet = needed_module("pyarrow.parquet", "parquet", "parquet")
        number, inner = self._places[group].tolist()
        file = self.files[number]
        try:
            return parquet.ParquetFile(file).read_row_group(inner, columns=list(columns))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: row group {inner} cannot be read ({_one_line(error)})") from None


class ArrowRows:
    """Arrow streams end to end, mapped into memory: nothing is read before it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        tables = self._tables()
        self.schema: Any = None
        for file, table in zip(self.files, tables, strict=True):
            self.schema = _same(self.schema, table.schema, file)
        self._ends = np.cumsum([table.num_rows for table in tables], dtype=np.int64)
        self._opened: Any = tables

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        if self._opened is None:
            self._opened = self._tables()
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._opened[number].slice(index - start, 1).select(list(columns)).to_pylist()[0]

    def column(self, name: str) -> list[Any]:
        return [value for table in self._opened or self._tables() for value in table[name].to_pylist()]

    def _tables(self) -> list[Any]:
        arrow, ipc = (needed_module(name, "parquet", "hf_datasets") for name in ("pyarrow", "pyarrow.ipc"))
        tables = []
        for file in self.files:
            try:
                tables.append(ipc.open_stream(arrow.memory_map(str(file))).read_all())
            except (OSError, ValueError) as error:
                raise DataError(f"{file}: no Arrow stream, or cut short ({_one_line(error)})") from None
        return tables


def _same(schema: Any, another: Any, file: Path) -> Any:
    if schema is not None and schema.names != another.names:
        raise DataError(
            f"{file}: its columns are {another.names}; expected {schema.names} as in the first file"
        )
    return another if schema is None else schema


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
