"""nuScenes tables as a few arrays: key frames in order, their cameras, poses and boxes.

Letters in shapes: s samples, c channels, d key-frame sensor data, a annotations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from allsight.data.driving.build import build
from allsight.data.driving.tables import NEEDED, Tables

FORMAT = 2
_FOLDER = ".allsight_index"
_SMALL_BYTES = 64 << 20
"""Smaller tables are parsed each time, which takes about two seconds; larger ones are kept as an index."""


@dataclass(frozen=True)
class Index:
    """Key frames of all scenes of one version; scenes follow the table, samples of a scene their time.

    Args:
        arrays: Name -> array; `build` says which.
        names: Lists of texts: `scenes`, `locations` (of each scene), `channels`, `categories`, `attributes`.
        folder: Where the arrays lie as files, if they do; then they are memory-mapped.
    """

    arrays: Mapping[str, np.ndarray]
    names: Mapping[str, tuple[str, ...]]
    folder: Path | None = None

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or name in {field.name for field in fields(Index)}:
            raise AttributeError(name)
        return self.arrays[name]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return _opened, (self.folder,)
        return Index, (self.arrays, self.names, None)

    def boxes(self, sample: int) -> Int64[np.ndarray, " n"]:
        """Rows of a sample's annotations."""
        start, end = self.arrays["box_start"][sample : sample + 2].tolist()
        return np.arange(start, end)

    def token(self, sample: int) -> str:
        """Name of a sample."""
        return bytes(self.arrays["sample_token"][sample]).decode()


def open_index(folder: Path, *, kept: bool | None = None) -> tuple[Index, str]:
    """The index of a version's folder, and a note for people ("" if there is nothing to say).

    Args:
        folder: Such as `nuscenes/v1.0-mini`.
        kept: Whether to keep it as files in the folder and to map these into memory; None keeps that of large
            tables.

    Raises:
        DataError: See `build`.
    """
    tables = Tables(folder)
    size = sum(tables.file(name).stat().st_size for name in NEEDED)
    if not (size > _SMALL_BYTES if kept is None else kept):
        return Index(*build(tables)), ""
    place = folder / _FOLDER
    stamp = _stamp(tables)
    try:
        if json.loads((place / "index.json").read_text())["stamp"] == stamp:
            return _opened(place), ""
    except (OSError, ValueError, KeyError):
        pass
    arrays, names = build(tables)
    try:
        _keep(place, arrays, names, stamp)
    except OSError as error:
        return Index(
            arrays, names
        ), f"the index of {size >> 20} MB of tables cannot be kept in {place} ({error})"
    return _opened(place), ""


def _stamp(tables: Tables) -> list[Any]:
    """Changes whenever a table does."""
    stats = [tables.file(name).stat() for name in NEEDED]
    return [FORMAT, *([stat.st_size, stat.st_mtime_ns] for stat in stats)]


def _keep(place: Path, arrays: Mapping[str, np.ndarray], names: Mapping[str, Any], stamp: list[Any]) -> None:
    place.mkdir(exist_ok=True)
    for name, array in arrays.items():
        partial = place / f"{name}.{os.getpid()}.part"
        with partial.open("wb") as file:
            np.save(file, array)
        partial.replace(place / f"{name}.npy")
    text = json.dumps({"stamp": stamp, "names": names, "arrays": sorted(arrays)})
    partial = place / f"index.{os.getpid()}.part"
    partial.write_text(text)
    partial.replace(place / "index.json")


def _opened(place: Path) -> Index:
    said = json.loads((place / "index.json").read_text())
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in said["arrays"]}
    return Index(arrays, {name: tuple(texts) for name, texts in said["names"].items()}, place)
