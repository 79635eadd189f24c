"""Pictures or texts in Parquet files: the format `parquet:PATH`."""

from __future__ import annotations

import re
from pathlib import Path

from allsight.data.readers.found import Found, no_split
from allsight.data.readers.table_rows import ParquetRows
from allsight.data.readers.tables import TableSamples
from allsight.data.readers.tree import Tree


class Parquet(TableSamples):
    """Reads SPLIT.parquet or SPLIT-00000-of-00002.parquet in PATH or PATH/data, or PATH/SPLIT/*.parquet.

    Needs the extra `parquet`. What the columns become: see `TableSamples`. A row in the middle of a file
    costs the reading of its row group, so reading in random order is slow where row groups are large; turn
    such a set into shards for training.
    """

    format = "parquet"
    reads_single_files = True

    def open_rows(self, path: Path, split: str) -> ParquetRows:
        files = _files(path)
        if split not in files:
            raise no_split(path, split, sorted(files), f"{path / split}.parquet")
        return ParquetRows(files[split])

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = sorted(_files(path))
        return Found(f"Parquet files for {', '.join(splits)}", tuple(splits)) if splits else None


def _files(path: Path) -> dict[str, list[Path]]:
    """The files of each split."""
    if path.is_file():
        return _by_split([path])
    flat = _by_split([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if flat:
        return flat
    folders = sorted({file.parent for file in path.glob("*/*.parquet")})
    return {folder.name: sorted(folder.glob("*.parquet")) for folder in folders}


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        match = re.fullmatch(r"(.+?)(?:-\d+(?:-of-\d+)?(?:-[0-9a-f]+)?)?\.parquet", file.name)
        if match:
            found.setdefault(match[1], []).append(file)
    return found
