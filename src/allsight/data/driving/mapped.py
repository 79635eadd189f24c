"""Readers of drives with more to each sample: the map classes around the car, and the frames before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from allsight.data.decode import LeastSize
from allsight.data.driving.frames import Frame
from allsight.data.driving.masks import MapMasks
from allsight.data.driving.vector_map import VectorMap, read_map
from allsight.types import BEVMap, DataError, Sample


@runtime_checkable
class DriveReader(Protocol):
    """What readers of drives offer beyond `NamedReader`."""

    name: str
    split: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    cameras: tuple[str, ...]
    sequences: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def frame(self, index: int) -> Frame: ...

    def map_file(self, index: int) -> Path | None: ...


def reading(reader: Any, least: LeastSize | None) -> Callable[[int], Sample]:
    """How samples are read: with pictures that may be decoded smaller, where the reader can."""
    if least is None or not hasattr(reader, "reduced"):
        return reader.__getitem__
    return lambda index: reader.reduced(index, least)


class Wrapped:
    """A reader of drives in front of another one, as which it presents itself."""

    def __init__(self, reader: DriveReader) -> None:
        self.reader = reader
        self.name, self.split = reader.name, reader.split
        self.classes, self.notes = reader.classes, reader.notes
        self.cameras, self.sequences = reader.cameras, reader.sequences

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        return self.reader[index]

    def reduced(self, index: int, least: LeastSize) -> Sample:
        """The sample, its pictures decoded smaller where that suffices and the reader can."""
        return reading(self.reader, least)(index)

    def frame(self, index: int) -> Frame:
        return self.reader.frame(index)

    def map_file(self, index: int) -> Path | None:
        return self.reader.map_file(index)


class Mapped(Wrapped):
    """Adds the target `bev_map`.

    Args:
        reader: Of drives.
        masks: Which classes, on which grid.

    Raises:
        DataError: On reading: a class needs a vector map and there is none.
    """

    def __init__(self, reader: DriveReader, masks: MapMasks) -> None:
        super().__init__(reader)
        self.masks = masks
        self._needs_map = any(cls.layers for cls in masks.classes.values())

    def __getitem__(self, index: int) -> Sample:
        return self._mapped(self.reader[index], index)

    def reduced(self, index: int, least: LeastSize) -> Sample:
        return self._mapped(super().reduced(index, least), index)

    def _mapped(self, sample: Sample, index: int) -> Sample:
        return replace(sample, targets={**sample.targets, "bev_map": self.bev_map(index)})

    def bev_map(self, index: int) -> BEVMap:
        """The map classes of a sample, without decoding its pictures."""
        frame = self.reader.frame(index)
        vector_map = None
        if self._needs_map:
            file = self.reader.map_file(index)
            if file is None or not file.is_file():
                raise DataError(
                    f"{self.split}/{frame.token}: no vector map{f' {file}' if file else ''}; get the map "
                    "expansion of the data set, or ask for classes that need none",
                    f"{self.split}/{frame.token}",
                )
            vector_map = _map(file)
        corners = footprints(frame)
        by_name: dict[str, list[np.ndarray]] = {}
        for label, points in zip(frame.boxes.labels.tolist(), corners, strict=True):
            by_name.setdefault(self.classes[label], []).append(points)
        return self.masks.of(frame.token, frame.world_from_ref, vector_map, by_name)


@lru_cache(maxsize=4)
def _map(file: Path) -> VectorMap:
    return read_map(file)


def footprints(frame: Frame) -> np.ndarray:
    """Corners [k, 4, 2] of the boxes on the ground, in order around each."""
    boxes = frame.boxes
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = signs[None] * boxes.sizes_lwh_m[:, None, :2]
    cos, sin = np.cos(boxes.yaw_rad)[:, None], np.sin(boxes.yaw_rad)[:, None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1) + boxes.centers_m[:, None, :2]


class Clips:
    """Samples with the frames before them, for training on clips drawn at random.

    The earlier frames are `views` (each `{"rig": ...}`), their targets the target `history`, oldest first,
    all of the sample's own scene; at its beginning there are fewer. The samples are no streams: there is no
    `sequences`.

    Args:
        reader: Of drives.
        history: How many earlier frames.
    """

    def __init__(self, reader: DriveReader, history: int) -> None:
        if history < 1:
            raise ValueError(f"Clips: expected a history of at least 1 frame, got {history}")
        self.reader, self.history = reader, history
        self.name, self.split = reader.name, reader.split
        self.classes, self.notes, self.cameras = reader.classes, reader.notes, reader.cameras
        self._starts = np.repeat(np.cumsum((0, *reader.sequences[:-1])), reader.sequences)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        return self.reduced(index, None)

    def reduced(self, index: int, least: LeastSize | None) -> Sample:
        """The sample, its pictures decoded smaller where that suffices and the reader can."""
        first = max(int(self._starts[index]), index - self.history)
        return _with_history(reading(self.reader, least), first, index)


class Chunks:
    """Streams whose steps are several consecutive frames, for training through time.

    A sample is the last frame of its chunk; the others are its `views` and the target `history`, as with
    `Clips`. `sequences` counts chunks. Where a scene is no multiple of `frames`, its first chunk is shorter.

    Args:
        reader: Of drives.
        frames: Of a chunk.
    """

    def __init__(self, reader: DriveReader, frames: int) -> None:
        if frames < 2:
            raise ValueError(f"Chunks: expected at least 2 frames, got {frames}")
        self.reader, self.frames = reader, frames
        self.name, self.split = reader.name, reader.split
        self.classes, self.notes, self.cameras = reader.classes, reader.notes, reader.cameras
        self.sequences = tuple(-(-length // frames) for length in reader.sequences)
        starts = np.cumsum((0, *reader.sequences[:-1]))
        ends = [
            np.arange(start + length, start, -frames)[::-1]
            for start, length in zip(starts, reader.sequences, strict=True)
        ]
        self._ends = np.concatenate(ends)
        self._starts = np.repeat(starts, self.sequences)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Sample:
        return self.reduced(index, None)

    def reduced(self, index: int, least: LeastSize | None) -> Sample:
        """The sample, its pictures decoded smaller where that suffices and the reader can."""
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of {len(self)}")
        last = int(self._ends[index]) - 1
        first = max(int(self._starts[index]), last - self.frames + 1)
        return _with_history(reading(self.reader, least), first, last)


def _with_history(read: Callable[[int], Sample], first: int, last: int) -> Sample:
    """A sample with the frames from `first` on before it."""
    sample = read(last)
    earlier = [read(n) for n in range(first, last)]
    return replace(
        sample,
        views=tuple({"rig": one.inputs["rig"]} for one in earlier),
        targets={**sample.targets, "history": tuple(one.targets for one in earlier)},
    )


@dataclass(frozen=True)
class ThinHistory:
    """Leave random frames of a clip's history out, so that gaps in time differ; the order stays.

    Args:
        keep: So many stay.

    Source: BEVFormer, arXiv:2203.17270, section 3.6 (one of the last frames is dropped).
    """

    keep: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        kept = sorted(rng.permutation(len(sample.views))[: self.keep].tolist())
        targets: dict[str, Any] = dict(sample.targets)
        if "history" in targets:
            targets["history"] = tuple(targets["history"][n] for n in kept)
        return replace(sample, views=tuple(sample.views[n] for n in kept), targets=targets)
