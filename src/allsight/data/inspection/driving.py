"""A sample of a camera rig as one picture: boxes in every camera, and the same boxes from above."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, UInt8

from allsight import draw
from allsight.data.driving.frames import Frame
from allsight.data.driving.poses import inverse, moved
from allsight.data.inspection.moments import RigView, Seen, draw_moment
from allsight.types import BEVMap, Boxes3D, DataError, Rig, Sample

_MOST_ON_A_SHEET = 4


@runtime_checkable
class DrawsFrames(Protocol):
    """A reader of drives: it knows poses and boxes without decoding pictures."""

    classes: tuple[str, ...]
    sequences: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def frame(self, index: int) -> Frame: ...


def drive_sheet(reader: DrawsFrames, count: int = 4) -> UInt8[np.ndarray, "h w 3"]:
    """Up to four evenly spread frames below each other, with the way of the car in their panels."""
    count = min(count, _MOST_ON_A_SHEET, len(reader))
    parts = []
    for index in np.unique(np.linspace(0, len(reader) - 1, count).round().astype(int)).tolist():
        try:
            sample = reader[index]
        except DataError as error:
            parts.append(draw.captioned(np.full((40, 1200, 3), 235, np.uint8), str(error)))
            continue
        parts.append(
            draw.captioned(draw_rig(sample, reader.classes, path_ref_m=ego_path(reader, index)), sample.id)
        )
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    )


def ego_path(reader: DrawsFrames, index: int) -> Float64[np.ndarray, "t 2"]:
    """Where the car is at all moments of the scene, in the reference frame of one of them."""
    ends = np.cumsum(reader.sequences)
    scene = int(np.searchsorted(ends, index, side="right"))
    frames = [reader.frame(n) for n in range(int(ends[scene]) - reader.sequences[scene], int(ends[scene]))]
    ref_from_world = np.linalg.inv(reader.frame(index).world_from_ref)
    places = [(frame.world_from_ref @ inverse(frame.ego_from_ref))[:3, 3] for frame in frames]
    return moved(ref_from_world, np.stack(places))[:, :2]


def draw_rig(
    sample: Sample,
    classes: tuple[str, ...],
    *,
    path_ref_m: Float[np.ndarray, "t 2"] | None = None,
    reach_m: float | None = None,
    tile_px: int = 400,
) -> UInt8[np.ndarray, "h w 3"]:
    """The cameras of the input `rig` with the target `boxes`, and a panel from above with `bev_map`.

    Args:
        sample: Targets may be missing.
        classes: Names; each class has its colour.
        path_ref_m: Where the car drives, in the reference frame.
        reach_m: How far the panel shows; default as far as boxes and map, 20 to 55 m.
        tile_px: Width of a camera's picture.
    """
    rig = sample.inputs["rig"]
    assert isinstance(rig, Rig)
    boxes, bev_map = sample.targets.get("boxes"), sample.targets.get("bev_map")
    seen = Seen(
        boxes=boxes if isinstance(boxes, Boxes3D) else None,
        bev_map=bev_map if isinstance(bev_map, BEVMap) else None,
    )
    return draw_moment(
        RigView.of(rig), classes, [seen], path_ref_m=path_ref_m, reach_m=reach_m, tile_px=tile_px
    )
