"""Upright boxes in space, over the picture of a camera.

Letters in shapes: h w the picture, n boxes, s segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from PIL import Image, ImageDraw

from allsight.draw.overlay import line_width_px
from allsight.draw.palette import Rgb
from allsight.draw.text import measure, put_label, text_height_px

_NEAR_M = 0.1
"""Nearer than this, nothing is drawn: the projection turns over at the camera's own plane."""
# Corner 4 x + 2 y + z with x, y, z 0 or 1: an edge joins two that differ in one of them.
_EDGES = np.array([(a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit])
# The face ahead (x = 1) is crossed, so that the heading is seen.
_CROSS = np.array([(4, 7), (5, 6)])


def draw_boxes3d(
    image: UInt8[np.ndarray, "h w 3"],
    corners_m: Float[np.ndarray, "n 8 3"],
    img_from_ref: Float[np.ndarray, "3 4"],
    colors: Sequence[Rgb],
    *,
    labels: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the edges of boxes; the face ahead is crossed. Near boxes lie over far ones.

    Args:
        image: The picture.
        corners_m: x sign slowest, z sign fastest, as `Boxes3D.corners_ref_m`.
        img_from_ref: Corners to pixels; what lies behind the camera is cut off at its near plane.
        colors: A colour for each box.
        labels: A text for each box.
    Raises:
        ValueError: A corner or the matrix is not finite, or the lengths differ.
    """
    for name, values in (("colors", colors), ("labels", labels)):
        if values is not None and len(values) != len(corners_m):
            raise ValueError(f"draw_boxes3d: {len(values)} {name} for {len(corners_m)} boxes")
    if not (np.isfinite(corners_m).all() and np.isfinite(img_from_ref).all()):
        raise ValueError("draw_boxes3d: a corner or the matrix is not finite")
    height, width = image.shape[:2]
    line, size_px = line_width_px(height, width), text_height_px(height, width)
    points = corners_m @ img_from_ref[:, :3].T + img_from_ref[:, 3]
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for number in np.argsort(-points[..., 2].mean(axis=1), kind="stable").tolist():
        box = points[number]
        segments = visible_segments(box[_EDGES], height, width)
        crossed = visible_segments(box[_CROSS], height, width)
        for segment in segments:
            pen.line(segment.ravel().tolist(), fill=colors[number], width=line)
        for segment in crossed:
            pen.line(segment.ravel().tolist(), fill=colors[number], width=max(1, line // 2))
        if labels is not None and len(segments):
            left, top = segments.reshape(-1, 2).min(axis=0)
            high = measure(str(labels[number]), size_px)[1]
            put_label(pen, str(labels[number]), int(left), max(0, int(top) - high), size_px, colors[number])
    return np.array(canvas)


def visible_segments(
    ends: Float[np.ndarray, "s 2 3"], height: int, width: int
) -> Float64[np.ndarray, "visible 2 2"]:
    """The parts of line segments that a camera sees, in pixels.

    Args:
        ends: Both ends as (u z, v z, z), where z is the depth in metres.
        height, width: Size of the picture.
    """
    ends = ends[(ends[..., 2] > _NEAR_M).any(axis=1)].astype(np.float64)
    first, second = ends[:, 0], ends[:, 1]
    depth = ends[..., 2]
    apart = depth[:, 1] - depth[:, 0]
    at = (_NEAR_M - depth[:, 0]) / np.where(apart == 0, 1, apart)
    cut = first + at[:, None] * (second - first)
    is_behind = depth < _NEAR_M
    ends = np.stack([np.where(is_behind[:, :1], cut, first), np.where(is_behind[:, 1:], cut, second)], axis=1)
    pixels = ends[..., :2] / ends[..., 2:]
    return _inside(pixels, height, width)


def _inside(
    pixels: Float64[np.ndarray, "s 2 2"], height: int, width: int
) -> Float64[np.ndarray, "visible 2 2"]:
    """The parts of segments inside the picture (Liang and Barsky 1984)."""
    start, along = pixels[:, 0], pixels[:, 1] - pixels[:, 0]
    enter, leave = np.zeros(len(pixels)), np.ones(len(pixels))
    is_seen: Bool[np.ndarray, " s"] = np.ones(len(pixels), dtype=bool)
    for axis, limit in ((0, width), (1, height)):
        step, place = along[:, axis], start[:, axis]
        flat = np.abs(step) < 1e-12
        safe = np.where(flat, 1, step)
        one, other = -place / safe, (limit - place) / safe
        enter = np.where(flat, enter, np.maximum(enter, np.minimum(one, other)))
        leave = np.where(flat, leave, np.minimum(leave, np.maximum(one, other)))
        is_seen &= ~flat | ((place >= 0) & (place <= limit))
    is_seen &= enter < leave
    ends = np.stack([start + enter[:, None] * along, start + leave[:, None] * along], axis=1)
    return ends[is_seen]
