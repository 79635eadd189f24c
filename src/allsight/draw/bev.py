"""A bird's-eye panel: the car in the middle, ahead is up and its left side is left.

Coordinates are those of the car: x ahead, y left, metres. Letters in shapes: n boxes, t points of a path,
c map classes, h w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from PIL import Image, ImageDraw

from allsight.draw.palette import Rgb
from allsight.draw.text import put_label

_PAPER, _RING, _EGO, _PATH = (250, 250, 250), (205, 205, 205), (20, 20, 20), (150, 60, 190)
_EGO_LENGTH_M, _EGO_WIDTH_M = 4.6, 1.9


@dataclass(frozen=True)
class BEVView:
    """Which part of the ground a panel shows, and how large.

    Args:
        behind_m, ahead_m: Lower and upper edge along x, such as -50 and 50.
        right_m, left_m: Right and left edge along y, such as -50 and 50.
        px_per_m: Scale.
    """

    behind_m: float
    ahead_m: float
    right_m: float
    left_m: float
    px_per_m: float

    @classmethod
    def square(cls, reach_m: float, side_px: int) -> BEVView:
        """As far in each direction."""
        return cls(-reach_m, reach_m, -reach_m, reach_m, side_px / (2 * reach_m))

    @property
    def hw_px(self) -> tuple[int, int]:
        height = (self.ahead_m - self.behind_m) * self.px_per_m
        width = (self.left_m - self.right_m) * self.px_per_m
        return max(1, round(height)), max(1, round(width))

    def pixels(self, points_m: Float[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n 2"]:
        """Pixel (column, row) of points (x, y)."""
        columns = (self.left_m - points_m[..., 1]) * self.px_per_m
        rows = (self.ahead_m - points_m[..., 0]) * self.px_per_m
        return np.stack([columns, rows], axis=-1).astype(np.float64)

    def points(self) -> Float64[np.ndarray, "h w 2"]:
        """The (x, y) of the middle of each pixel."""
        height, width = self.hw_px
        x = self.ahead_m - (np.arange(height) + 0.5) / self.px_per_m
        y = self.left_m - (np.arange(width) + 0.5) / self.px_per_m
        return np.stack(np.broadcast_arrays(x[:, None], y[None, :]), axis=-1)


def bev_ground(
    view: BEVView,
    masks: Bool[np.ndarray, "c h w"],
    extent_m: tuple[float, float, float, float],
    colors: Sequence[Rgb],
    ref_from_ego: Float[np.ndarray, "4 4"],
) -> UInt8[np.ndarray, "ph pw 3"]:
    """Map classes as the ground of a panel; later ones lie over earlier ones.

    Args:
        view: The panel.
        masks: Row i along y, column j along x of the reference frame.
        extent_m: x_min, y_min, x_max, y_max of the map in the reference frame.
        colors: A colour for each class.
        ref_from_ego: The car's frame to the map's.
    """
    ground = np.empty((*view.hw_px, 3), dtype=np.uint8)
    ground[:] = _PAPER
    points = view.points() @ ref_from_ego[:2, :2].T + ref_from_ego[:2, 3]
    low, high = np.array(extent_m[:2]), np.array(extent_m[2:])
    cells = np.floor((points - low) / (high - low) * np.array(masks.shape[:0:-1])).astype(int)
    columns, rows = cells[..., 0], cells[..., 1]
    inside = (columns >= 0) & (columns < masks.shape[2]) & (rows >= 0) & (rows < masks.shape[1])
    for mask, color in zip(masks, colors, strict=True):
        found = np.zeros(inside.shape, dtype=bool)
        found[inside] = mask[rows[inside], columns[inside]]
        ground[found] = color
    return ground


def draw_bev(
    view: BEVView,
    footprints_m: Float[np.ndarray, "n 4 2"],
    colors: Sequence[Rgb],
    *,
    velocities_mps: Float[np.ndarray, "n 2"] | None = None,
    path_m: Float[np.ndarray, "t 2"] | None = None,
    ground: UInt8[np.ndarray, "h w 3"] | None = None,
    filled: bool = False,
    title: str = "",
) -> UInt8[np.ndarray, "h w 3"]:
    """Boxes from above, with a thick edge ahead and an arrow as long as the way of one second.

    Args:
        view: The panel.
        footprints_m: Front left, front right, rear right, rear left corner of each.
        colors: A colour for each box.
        velocities_mps: NaN where unknown.
        path_m: Where the car drove and will drive.
        ground: What lies below, of the panel's size (`bev_ground`, or a panel with other boxes).
        filled: Fill the boxes.
        title: Written into the corner.
    """
    base = np.full((*view.hw_px, 3), _PAPER, dtype=np.uint8) if ground is None else ground
    canvas = Image.fromarray(base)
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(min(view.hw_px) / 300))
    center = view.pixels(np.zeros(2))
    for radius_m in range(20, int(max(view.ahead_m, -view.behind_m, view.left_m, -view.right_m)) + 1, 20):
        reach = radius_m * view.px_per_m
        pen.ellipse((*(center - reach).tolist(), *(center + reach).tolist()), outline=_RING)
    if path_m is not None and len(path_m) > 1:
        pen.line([tuple(point) for point in view.pixels(path_m).tolist()], fill=_PATH, width=2 * line)
    half_m = np.array([_EGO_LENGTH_M, _EGO_WIDTH_M]) / 2
    ego = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * half_m
    pen.polygon([tuple(point) for point in view.pixels(ego).tolist()], fill=_EGO)
    for number, corners in enumerate(view.pixels(footprints_m)):
        points, color = [tuple(point) for point in corners.tolist()], colors[number]
        if filled:
            pen.polygon(points, fill=color)
        pen.line([*points, points[0]], fill=color, width=line)
        pen.line(points[:2], fill=color, width=3 * line)
        if velocities_mps is not None and np.isfinite(velocities_mps[number]).all():
            middle = footprints_m[number].mean(axis=0)
            arrow = view.pixels(np.stack([middle, middle + velocities_mps[number]]))
            pen.line([tuple(point) for point in arrow.tolist()], fill=color, width=line)
    if title:
        put_label(pen, title, 0, 0, max(10, min(view.hw_px) // 30), (60, 60, 60))
    return np.array(canvas)
