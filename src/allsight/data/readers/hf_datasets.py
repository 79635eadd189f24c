"""Folders that the `datasets` package saved (`save_to_disk`): the format `hf_datasets:PATH`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from allsight.data.readers.found import Found, no_split
from allsight.data.readers.table_rows import ArrowRows
from allsight.data.readers.tables import TableSamples
from allsight.data.readers.tree import Tree, name_inside
from allsight.types import DataError


class HfDatasets(TableSamples):
    """Reads PATH/SPLIT/state.json and the Arrow files it names, by mapping them into memory.

    Needs the extra `parquet` (pyarrow), not `datasets`. What the columns become: see `TableSamples`. A folder
    of one split has its state.json in PATH, and the split `train`.
    """

    format = "hf_datasets"

    def open_rows(self, path: Path, split: str) -> ArrowRows:
        folders = _folders(path)
        if split not in folders:
            raise no_split(path, split, sorted(folders), f"{path / split / 'state.json'}")
        return ArrowRows(_arrow_files(folders[split]))

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = sorted(_folders(path))
        return Found(f"folders saved by datasets for {', '.join(splits)}", tuple(splits)) if splits else None


def _folders(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        return {}
    if (path / "state.json").is_file():
        return {"train": path}
    return {state.parent.name: state.parent for state in path.glob("*/state.json")}


def _arrow_files(folder: Path) -> list[Path]:
    state = folder / "state.json"
    try:
        said: Any = json.loads(state.read_bytes())
        names = [entry["filename"] for entry in said["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state}: not a state of datasets ({error})") from error
    if said.get("_indices_files"):
        raise DataError(f"{state}: rows are picked by an index; call flatten_indices() before saving")
    return [folder / name_inside(str(name), str(state)) for name in names]
