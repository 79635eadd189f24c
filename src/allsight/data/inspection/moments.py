"""One moment of a camera rig as a picture: boxes in every camera, and panels from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, UInt8

from allsight import draw
from allsight.data.driving.poses import inverse
from allsight.types import BEVMap, Boxes3D, MultiCameraBatch, Rig, class_name

_REACH_M = 55.0
_PANEL_PX = 900
_FAINT = (150, 150, 150)
_MAP_COLORS = ((222, 222, 214), (120, 120, 120), (236, 202, 140), (190, 215, 190), (214, 150, 150))


@dataclass(frozen=True)
class RigView:
    """Pictures of a rig, and where their pixels look.

    Args:
        pictures: uint8 [h, w, 3] of any sizes.
        names: Of the cameras.
        img_from_ref: Their matrices.
        ego_from_ref: Reference frame to the vehicle's.
    """

    pictures: Sequence[np.ndarray]
    names: Sequence[str]
    img_from_ref: Float[np.ndarray, "n 3 4"]
    ego_from_ref: Float[np.ndarray, "4 4"]

    @classmethod
    def of(cls, rig: Rig) -> RigView:
        """Of a sample."""
        pictures = [np.ascontiguousarray(image.pixels.permute(1, 2, 0).numpy()) for image in rig.images]
        names = rig.camera_names or tuple(f"camera {n}" for n in range(len(pictures)))
        return cls(pictures, names, rig.img_from_ref.double().numpy(), rig.ego_from_ref.double().numpy())

    @classmethod
    def of_row(cls, batch: MultiCameraBatch, row: int, names: Sequence[str] = ()) -> RigView:
        """Of a row of a batch: cameras that delivered a picture, without padding."""
        rig, count = batch.rig, batch.images.shape[1]
        present = range(count) if rig.is_present is None else rig.is_present[row].nonzero()[:, 0].tolist()
        pictures = []
        for camera in present:
            pixels = batch.images[row, camera].cpu().permute(1, 2, 0).numpy()
            height, width = pixels.shape[:2]
            if batch.valid_hw_px is not None:
                height, width = batch.valid_hw_px[row, camera].tolist()
            pictures.append(np.ascontiguousarray(pixels[:height, :width]))
        return cls(
            pictures,
            [names[n] if n < len(names) else f"camera {n}" for n in present],
            rig.img_from_ref[row].double().cpu().numpy()[list(present)],
            rig.ego_from_ref[row].double().cpu().numpy(),
        )

    @property
    def azimuths_rad(self) -> Float64[np.ndarray, " n"]:
        """Where each camera looks, seen from the car: 0 ahead, left positive."""
        # The last row of a projection is the camera's axis, since it gives the depth.
        axes = self.img_from_ref[:, 2, :3] @ self.ego_from_ref[:3, :3].T
        return np.arctan2(axes[:, 1], axes[:, 0]).astype(np.float64)


@dataclass(frozen=True)
class Seen:
    """What a panel from above shows, in the reference frame.

    Args:
        boxes: In the colours of their classes.
        faint: Further boxes in grey below them, such as the truth.
        bev_map: The ground.
        title: What it is.
    """

    boxes: Boxes3D | None = None
    faint: Boxes3D | None = None
    bev_map: BEVMap | None = None
    title: str = ""


def draw_moment(
    view: RigView,
    classes: tuple[str, ...],
    panels: Sequence[Seen],
    *,
    path_ref_m: Float[np.ndarray, "t 2"] | None = None,
    reach_m: float | None = None,
    tile_px: int = 400,
) -> UInt8[np.ndarray, "h w 3"]:
    """The cameras with the boxes of the last panel, the panels beside them, a legend below.

    Args:
        view: The cameras.
        classes: Names of the boxes' classes; each class has its colour.
        panels: From left to right; at least one.
        path_ref_m: Where the car drives.
        reach_m: How far the panels show; default as far as boxes and maps, 20 to 55 m.
        tile_px: Width of a camera's picture.
    """
    boxes = panels[-1].boxes
    labels = boxes.labels.tolist() if boxes is not None else []
    colors = [class_color(label, len(classes)) for label in labels]
    corners = _corners(boxes)
    pictures = [
        draw.draw_boxes3d(picture, corners, matrix, colors)
        for picture, matrix in zip(view.pictures, view.img_from_ref, strict=True)
    ]
    if reach_m is None:
        places = [_footprints(b, view) for p in panels for b in (p.boxes, p.faint)]
        farthest = max(float(np.abs(place).max(initial=0)) for place in places)
        maps = [seen.bev_map.grid for seen in panels if seen.bev_map is not None]
        farthest = max(
            [farthest, *(max(map(abs, grid.range_m[:2] + grid.range_m[3:5])) - 2 for grid in maps)]
        )
        reach_m = min(max(farthest + 2, 20.0), _REACH_M)
    parts = [_panel(view, seen, len(classes), path_ref_m, reach_m) for seen in panels]
    panel = np.concatenate(parts, axis=1)
    sheet = draw.surround(pictures, view.names, view.azimuths_rad, panel=panel, tile_px=tile_px)
    shown = sorted(set(labels))
    names = [class_name(label, classes) for label in shown]
    tints = [class_color(label, len(classes)) for label in shown]
    maps = next((seen.bev_map for seen in panels if seen.bev_map is not None), None)
    if maps is not None:
        names += list(maps.classes)
        tints += [map_color(n) for n in range(len(maps.classes))]
    if not names:
        return sheet
    return np.concatenate([sheet, draw.legend(names, tints, width_px=sheet.shape[1])])


def class_color(label: int, count: int) -> tuple[int, int, int]:
    """One for each class, the same in every picture."""
    colors = draw.palette(min(256, max(count, label + 1, 1)))
    return colors[label % len(colors)]


def map_color(number: int) -> tuple[int, int, int]:
    """One for each map class."""
    return _MAP_COLORS[number % len(_MAP_COLORS)]


def _corners(boxes: Boxes3D | None) -> Float64[np.ndarray, "n 8 3"]:
    return boxes.corners_ref_m().double().cpu().numpy() if boxes is not None else np.zeros((0, 8, 3))


def _footprints(boxes: Boxes3D | None, view: RigView) -> Float64[np.ndarray, "n 4 2"]:
    """In the car's frame: front left, front right, rear right, rear left of the lower face."""
    turn, shift = view.ego_from_ref[:2, :2], view.ego_from_ref[:2, 3]
    # x sign slowest, z sign fastest.
    return _corners(boxes)[:, [6, 4, 0, 2], :2] @ turn.T + shift


def _panel(
    view: RigView, seen: Seen, classes: int, path_ref_m: np.ndarray | None, reach_m: float
) -> UInt8[np.ndarray, "h w 3"]:
    turn, shift = view.ego_from_ref[:2, :2], view.ego_from_ref[:2, 3]
    ground_view, ground = draw.BEVView.square(reach_m, _PANEL_PX), None
    if seen.bev_map is not None:
        grid = seen.bev_map.grid
        ground = draw.bev_ground(
            ground_view,
            seen.bev_map.masks.numpy(),
            (*grid.range_m[:2], *grid.range_m[3:5]),
            [map_color(n) for n in range(len(seen.bev_map.classes))],
            inverse(view.ego_from_ref),
        )
    if seen.faint is not None:
        below = _footprints(seen.faint, view)
        ground = draw.draw_bev(ground_view, below, [_FAINT] * len(below), ground=ground, filled=True)
    boxes = seen.boxes
    labels = boxes.labels.tolist() if boxes is not None else []
    speeds = boxes.velocities_ref_mps.double().cpu().numpy() @ turn.T if boxes is not None else None
    return draw.draw_bev(
        ground_view,
        _footprints(boxes, view),
        [class_color(label, classes) for label in labels],
        velocities_mps=speeds,
        path_m=None if path_ref_m is None else np.asarray(path_ref_m) @ turn.T + shift,
        ground=ground,
        title=", ".join(part for part in (seen.title, f"{reach_m:.0f} m, ahead is up") if part),
    )
