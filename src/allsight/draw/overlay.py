"""Boxes, masks and label maps over a picture.

Letters in shapes: h w the picture, n objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw

from allsight.draw.palette import Rgb, palette
from allsight.draw.text import fit, measure, put_label, text_height_px

Real = float | int | np.floating
Box = Sequence[Real] | np.ndarray


def line_width_px(height: int, width: int) -> int:
    """Width of lines that suits a picture of this size."""
    return max(1, round(min(height, width) / 240))


def draw_boxes(
    image: UInt8[np.ndarray, "h w 3"],
    boxes_xyxy_px: Sequence[Box] | np.ndarray,
    *,
    labels: Sequence[str] | None = None,
    scores: Sequence[Real] | np.ndarray | None = None,
    colors: Sequence[Rgb] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the rims of boxes, just inside them, with "label 0.93" above.

    Args:
        image: The picture.
        boxes_xyxy_px: Left, top, right, bottom of n boxes; what lies outside the picture is cut off.
        labels: A text for each box.
        scores: A number for each box, written with two digits.
        colors: A colour for each box; by default one for each label, or each box where there are no labels.
    Raises:
        ValueError: A box has no four finite numbers, or the lengths differ.
    """
    boxes = np.asarray(boxes_xyxy_px, dtype=np.float64) if len(boxes_xyxy_px) else np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"draw_boxes: expected four finite numbers a box, got {boxes.tolist()}")
    for name, values in (("labels", labels), ("scores", scores), ("colors", colors)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"draw_boxes: expected {len(boxes)} {name}, one for each box, got {len(values)}")
    height, width = image.shape[:2]
    line, size_px = line_width_px(height, width), text_height_px(height, width)
    colors = colors if colors is not None else _colors(len(boxes), labels)
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    corners = []
    for box, color in zip(boxes, colors, strict=True):
        left, top = (max(0, math.floor(value)) for value in box[:2])
        right, low = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
        corners.append((left, top, right, low))
        if left < right and top < low:
            pen.rectangle(
                (left, top, right - 1, low - 1), outline=color, width=min(line, right - left, low - top)
            )
    for number, ((left, top, right, low), color) in enumerate(zip(corners, colors, strict=True)):
        words = [labels[number]] if labels is not None else []
        words += [f"{scores[number]:.2f}"] if scores is not None else []
        text = fit(" ".join(words), size_px, width)
        if not text or left >= right or top >= low:
            continue
        text_width, text_height = measure(text, size_px)
        # Above the box, or inside it where it touches the upper edge of the picture.
        start = top - text_height if top >= text_height else top
        put_label(pen, text, max(0, min(left, width - text_width)), start, size_px, color)
    return np.array(canvas)


def _colors(count: int, labels: Sequence[str] | None) -> list[Rgb]:
    if labels is None:
        return [palette(min(count, 256))[number % 256] for number in range(count)]
    names = sorted(set(labels))
    colors = palette(min(len(names), 256))
    return [colors[names.index(label) % 256] for label in labels]


def draw_masks(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    *,
    alpha: float | int = 0.45,
    colors: Sequence[Rgb] | None = None,
    outline: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """Tint masks; later ones lie over earlier ones.

    Args:
        image: The picture.
        masks: One for each object.
        alpha: 0 leaves the picture as it is, 1 hides it.
        colors: A colour for each mask.
        outline: Draw the rim of each mask in full colour.
    Raises:
        ValueError: `alpha` is outside 0..1 or the number of colours differs.
    """
    _check_alpha("draw_masks", alpha)
    colors = colors if colors is not None else _colors(len(masks), None)
    if len(colors) != len(masks):
        raise ValueError(f"draw_masks: expected {len(masks)} colors, one for each mask, got {len(colors)}")
    out = image.copy()
    line = line_width_px(*image.shape[:2])
    for mask, color in zip(masks, colors, strict=True):
        _tint(out, mask, np.array(color, dtype=np.float32), alpha)
        if outline:
            out[mask & ~_shrunk(mask, line)] = color
    return out


def draw_points(
    image: UInt8[np.ndarray, "h w 3"], points_xy_px: Float[np.ndarray, "n 2"], color: Rgb
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw points as dots with a white rim.

    Args:
        image: The picture.
        points_xy_px: n points; what lies outside the picture is cut off.
        color: Of the dots.
    Raises:
        ValueError: A point is not finite.
    """
    if not np.isfinite(points_xy_px).all():
        raise ValueError(f"draw_points: expected finite points, got {points_xy_px.tolist()}")
    radius = 1.5 * line_width_px(*image.shape[:2])
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for x, y in points_xy_px.tolist():
        for reach, ink in ((radius + 1, (255, 255, 255)), (radius, color)):
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)
    return np.array(canvas)


def draw_label_map(
    image: UInt8[np.ndarray, "h w 3"] | None,
    label_map: Integer[np.ndarray, "h w"],
    colors: Sequence[Rgb],
    *,
    ignore: int | None = 255,
    alpha: float | int = 0.6,
) -> UInt8[np.ndarray, "h w 3"]:
    """Tint every pixel in the colour of its class.

    Args:
        image: The picture, or None to draw the colours alone.
        label_map: Class of every pixel.
        colors: Colour of every class, such as `palette(number of classes)`.
        ignore: Value without a class; such pixels stay as they are (grey if there is no picture).
        alpha: 0 leaves the picture as it is, 1 hides it.
    Raises:
        ValueError: A value is neither a class nor `ignore`, or `alpha` is outside 0..1.
    """
    _check_alpha("draw_label_map", alpha)
    ignored = label_map == ignore if ignore is not None else np.zeros(label_map.shape, dtype=bool)
    wrong = ~ignored & ((label_map < 0) | (label_map >= len(colors)))
    if wrong.any():
        value, row, column = int(label_map[wrong][0]), *(int(i[0]) for i in np.nonzero(wrong))
        raise ValueError(
            f"draw_label_map: value {value} at row {row}, column {column}; expected 0 to {len(colors) - 1} "
            f"or {ignore} to ignore; give a colour for every class"
        )
    table = np.array([*colors, (128, 128, 128)], dtype=np.uint8)
    tints = table[np.where(ignored, len(colors), label_map)]
    if image is None:
        return tints
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"draw_label_map: picture is {image.shape[:2]}, label map is {label_map.shape}")
    out = image.copy()
    _tint(out, ~ignored, tints[~ignored].astype(np.float32), alpha)
    return out


def _check_alpha(function: str, alpha: float | int) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"{function}: expected alpha from 0 to 1, got {alpha}")


def _tint(image: np.ndarray, where: np.ndarray, color: np.ndarray, alpha: float | int) -> None:
    image[where] = np.rint(image[where] * np.float32(1 - alpha) + color * np.float32(alpha)).astype(np.uint8)


def _shrunk(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask without its rim of `by` pixels."""
    padded = np.pad(mask, by)
    for _ in range(by):
        inner = padded.copy()
        inner[1:] &= padded[:-1]
        inner[:-1] &= padded[1:]
        inner[:, 1:] &= padded[:, :-1]
        inner[:, :-1] &= padded[:, 1:]
        padded = inner
    return padded[by:-by, by:-by]
