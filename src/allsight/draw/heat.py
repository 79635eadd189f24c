"""Strengths as colours, places as dots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from allsight.draw.palette import Rgb
from allsight.draw.text import font, line_height_px, plain

# From black over purple and orange to pale yellow: lighter means stronger for every eye, also in grey print.
_RAMP = np.array(
    [
        (0.0, 4, 4, 16),
        (0.15, 44, 17, 88),
        (0.3, 101, 21, 110),
        (0.45, 159, 42, 99),
        (0.6, 212, 72, 66),
        (0.75, 245, 125, 21),
        (0.88, 250, 193, 39),
        (1.0, 252, 255, 200),
    ]
)
_OVERSAMPLING = 4


def heat_colors(strength: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colours from black (0) to pale yellow (1); values beyond are held at the ends.

    Raises:
        ValueError: A value is not finite.
    """
    if not np.isfinite(strength).all():
        raise ValueError("heat_colors: expected finite values")
    levels = np.clip(strength, 0, 1)
    channels = [np.interp(levels, _RAMP[:, 0], _RAMP[:, channel]) for channel in (1, 2, 3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def draw_heat(
    image: UInt8[np.ndarray, "h w 3"], strength: Float[np.ndarray, "_ _"], *, alpha: float | int = 0.75
) -> UInt8[np.ndarray, "h w 3"]:
    """Lay the colours of `strength` over the picture in grey.

    Args:
        image: The picture.
        strength: 0 to 1, of the size of the picture.
        alpha: 0 shows the grey picture, 1 the colours alone.
    Raises:
        ValueError: Sizes differ, or a value is not finite.
    """
    if strength.shape != image.shape[:2]:
        raise ValueError(f"draw_heat: picture is {image.shape[:2]}, strength is {strength.shape}")
    grey = image.astype(np.float32).mean(axis=2, keepdims=True).repeat(3, axis=2)
    mixed = grey * np.float32(1 - alpha) + heat_colors(strength) * np.float32(alpha)
    return np.rint(mixed).astype(np.uint8)


def draw_dots(
    image: UInt8[np.ndarray, "h w 3"],
    points_xy_px: Float[np.ndarray, "n 2"],
    radii_px: Float[np.ndarray, " n"],
    color: Rgb,
    *,
    alpha: float | int = 1.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw dots of given sizes with smooth rims; where they overlap they become denser.

    Args:
        image: The picture.
        points_xy_px: Their middles; what lies outside the picture is cut off.
        radii_px: Their radii.
        color: Of all.
        alpha: How much of the picture a single dot hides.
    Raises:
        ValueError: A point or radius is not finite.
    """
    if not (np.isfinite(points_xy_px).all() and np.isfinite(radii_px).all()):
        raise ValueError("draw_dots: expected finite points and radii")
    height, width = image.shape[:2]
    clear = np.ones((height, width), dtype=np.float32)
    for (x, y), radius in zip(points_xy_px.tolist(), radii_px.tolist(), strict=True):
        left, top = max(0, int(x - radius - 1)), max(0, int(y - radius - 1))
        right, low = min(width, int(x + radius + 2)), min(height, int(y + radius + 2))
        if left >= right or top >= low:
            continue
        rows, columns = np.ogrid[top:low, left:right]
        distance = np.hypot(rows - y, columns - x)
        clear[top:low, left:right] *= 1 - alpha * np.clip(radius + 0.5 - distance, 0, 1)
    shown = image * clear[..., None] + np.array(color, dtype=np.float32) * (1 - clear[..., None])
    return np.rint(shown).astype(np.uint8)


def draw_cross(
    image: UInt8[np.ndarray, "h w 3"], xy_px: tuple[float, float], color: Rgb, *, reach_px: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Mark a place by a cross with a dark rim."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    x, y = xy_px
    thick = max(1, reach_px // 4)
    for grown, ink in ((1, (0, 0, 0)), (0, color)):
        for dx, dy in ((reach_px, thick / 2), (thick / 2, reach_px)):
            pen.rectangle((x - dx - grown, y - dy - grown, x + dx + grown, y + dy + grown), fill=ink)
    return np.array(canvas)


def color_bar(
    labels: Sequence[str], *, width_px: int, height_px: int, size_px: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of `heat_colors` from left to right with labels below, spread evenly from end to end."""
    ramp = heat_colors(np.linspace(0, 1, width_px)[None].repeat(height_px, axis=0))
    below = Image.new("RGB", (width_px, line_height_px(size_px) + 2), (255, 255, 255))
    pen = ImageDraw.Draw(below)
    for number, label in enumerate(map(plain, labels)):
        share = number / max(len(labels) - 1, 1)
        room = width_px - 1 - font(size_px).getlength(label)
        pen.text((min(max(share * (width_px - 1) - font(size_px).getlength(label) / 2, 0), room), 1), label,
                 fill=(20, 20, 20), font=font(size_px))  # fmt: skip
    return np.concatenate([ramp, np.array(below)])
