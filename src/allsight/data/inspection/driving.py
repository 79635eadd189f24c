"""A sample of a camera rig as one picture: boxes in every camera, and the same boxes from above."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, UInt8

from allsight import draw
from allsight.data.driving.frames import Frame
from allsight.data.driving.poses import inverse, moved
from allsight.types import BEVMap, Boxes3D, DataError, Rig, Sample, class_name

_REACH_M = 55.0
_PANEL_PX = 900
_MOST_ON_A_SHEET = 4
_MAP_COLORS = ((222, 222, 214), (120, 120, 120), (236, 202, 140), (190, 215, 190), (214, 150, 150))


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
        reach_m: How far the panel shows; default as far as the boxes, 20 to 55 m or what the map needs.
        tile_px: Width of a camera's picture.
    """
    rig = sample.inputs["rig"]
    assert isinstance(rig, Rig)
    boxes = sample.targets.get("boxes")
    boxes = boxes if isinstance(boxes, Boxes3D) else None
    labels = boxes.labels.tolist() if boxes is not None else []
    colors = [class_color(label, len(classes)) for label in labels]
    corners = boxes.corners_ref_m().double().numpy() if boxes is not None else np.zeros((0, 8, 3))
    matrices = rig.img_from_ref.double().numpy()
    pictures = []
    for image, matrix in zip(rig.images, matrices, strict=True):
        pixels = np.ascontiguousarray(image.pixels.permute(1, 2, 0).numpy())
        pictures.append(draw.draw_boxes3d(pixels, corners, matrix, colors))
    names = rig.camera_names or tuple(f"camera {n}" for n in range(len(pictures)))
    ego_from_ref = rig.ego_from_ref.double().numpy()
    panel = _panel(sample, boxes, colors, ego_from_ref, path_ref_m, reach_m)
    azimuths = azimuths_rad(matrices, ego_from_ref)
    sheet = draw.surround(pictures, names, azimuths, panel=panel, tile_px=tile_px)
    shown = sorted(set(labels))
    if not shown:
        return sheet
    key = draw.legend(
        [class_name(label, classes) for label in shown],
        [class_color(label, len(classes)) for label in shown],
        width_px=sheet.shape[1],
    )
    return np.concatenate([sheet, key])


def class_color(label: int, count: int) -> tuple[int, int, int]:
    """One for each class, the same in every picture."""
    colors = draw.palette(min(256, max(count, label + 1, 1)))
    return colors[label % len(colors)]


def azimuths_rad(
    img_from_ref: Float[np.ndarray, "n 3 4"], ego_from_ref: Float[np.ndarray, "4 4"]
) -> Float64[np.ndarray, " n"]:
    """Where each camera looks, seen from the car: 0 ahead, left positive."""
    # The last row of a projection is the camera's axis, since it gives the depth.
    axes = img_from_ref[:, 2, :3] @ ego_from_ref[:3, :3].T
    return np.arctan2(axes[:, 1], axes[:, 0]).astype(np.float64)


def _panel(
    sample: Sample,
    boxes: Boxes3D | None,
    colors: list[tuple[int, int, int]],
    ego_from_ref: Float[np.ndarray, "4 4"],
    path_ref_m: Float[np.ndarray, "t 2"] | None,
    reach_m: float | None,
) -> UInt8[np.ndarray, "h w 3"]:
    turn, shift = ego_from_ref[:2, :2], ego_from_ref[:2, 3]
    corners = boxes.corners_ref_m().double().numpy() if boxes is not None else np.zeros((0, 8, 3))
    # Front left, front right, rear right, rear left of the lower face; x sign slowest, z sign fastest.
    footprints = corners[:, [6, 4, 0, 2], :2] @ turn.T + shift
    speeds = boxes.velocities_ref_mps.double().numpy() @ turn.T if boxes is not None else None
    if reach_m is None:
        farthest = float(np.abs(footprints).max(initial=0))
        reach_m = min(max(farthest + 2, 20.0), _REACH_M)
    view = draw.BEVView.square(reach_m, _PANEL_PX)
    bev_map, ground = sample.targets.get("bev_map"), None
    if isinstance(bev_map, BEVMap):
        grid = bev_map.grid
        ground = draw.bev_ground(
            view,
            bev_map.masks.numpy(),
            (*grid.range_m[:2], *grid.range_m[3:5]),
            [_MAP_COLORS[n % len(_MAP_COLORS)] for n in range(len(bev_map.classes))],
            inverse(ego_from_ref),
        )
    path = None if path_ref_m is None else np.asarray(path_ref_m) @ turn.T + shift
    return draw.draw_bev(
        view,
        footprints,
        colors,
        velocities_mps=speeds,
        path_m=path,
        ground=ground,
        title=f"{reach_m:.0f} m, ahead is up",
    )
