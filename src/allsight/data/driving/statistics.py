"""What a driving set holds, from its boxes and poses alone: no picture is decoded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from allsight.data.driving.mapped import DriveReader
from allsight.data.driving.poses import heading

_RING_EDGES_M = (0.0, 20.0, 40.0, np.inf)
_MOVING_MPS = 0.2


@dataclass(frozen=True)
class ClassStatistics:
    """Of one class.

    Args:
        boxes: How many.
        rings: By distance from the reference's origin: below 20 m, 20 to 40 m, beyond.
        size_lwh_m: Median length, width, height.
        moving: Share of those of known speed that are faster than 0.2 m/s.
        speed_mps: Median speed of these.
        points: Median number of points, of those counted.
    """

    boxes: int
    rings: tuple[int, int, int]
    size_lwh_m: tuple[float, float, float]
    moving: float
    speed_mps: float
    points: float


@dataclass(frozen=True)
class DriveStatistics:
    """Of a split.

    Args:
        scenes, samples, boxes: How many.
        seconds: Time driven, from the first sample of each scene to its last.
        metres: Way driven.
        turn_rad: Largest change of heading between two samples.
        cameras: Camera -> samples in which it delivered a picture.
        classes: Class -> its statistics; those without a box are left out.
    """

    scenes: int
    samples: int
    boxes: int
    seconds: float
    metres: float
    turn_rad: float
    cameras: dict[str, int]
    classes: dict[str, ClassStatistics]

    def to_json(self) -> dict[str, Any]:
        """Plain values; nan where nothing is known."""
        return asdict(self)


def drive_statistics(reader: DriveReader) -> DriveStatistics:
    """Look at every sample of a reader."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    cameras = dict.fromkeys(reader.cameras, 0)
    seconds = metres = turn = 0.0
    index = 0
    for length in reader.sequences:
        frames = [reader.frame(n) for n in range(index, index + length)]
        index += length
        for frame in frames:
            for shot in frame.shots:
                cameras[shot.name] += 1
            for name in _COLUMNS:
                columns[name].append(getattr(frame.boxes, name))
        places = np.array([frame.world_from_ref[:3, 3] for frame in frames])
        yaws = np.unwrap([float(heading(frame.world_from_ref[:3, :3])) for frame in frames])
        seconds += frames[-1].time_s - frames[0].time_s
        metres += float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
        turn = max(turn, float(np.abs(np.diff(yaws)).max(initial=0.0)))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    classes = {}
    for label in np.unique(joined["labels"]).tolist():
        own = {name: values[joined["labels"] == label] for name, values in joined.items()}
        classes[reader.classes[label]] = _of_class(own)
    return DriveStatistics(
        len(reader.sequences), len(reader), len(joined["labels"]), seconds, metres, turn, cameras, classes
    )


_COLUMNS = ("centers_m", "sizes_lwh_m", "velocities_mps", "labels", "num_points")


def _of_class(own: dict[str, np.ndarray]) -> ClassStatistics:
    distance = np.linalg.norm(own["centers_m"][:, :2], axis=1)
    near, middle, far = np.histogram(distance, _RING_EDGES_M)[0].tolist()
    speed = np.linalg.norm(own["velocities_mps"], axis=1)
    speed = speed[~np.isnan(speed)]
    moving = speed[speed > _MOVING_MPS]
    length, width, height = np.median(own["sizes_lwh_m"], axis=0).tolist()
    return ClassStatistics(
        len(distance),
        (near, middle, far),
        (length, width, height),
        len(moving) / len(speed) if len(speed) else float("nan"),
        _median(moving),
        _median(own["num_points"][own["num_points"] >= 0]),
    )


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
