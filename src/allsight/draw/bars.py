"""Bars side by side, for figures that are to be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from allsight.draw.palette import Rgb
from allsight.draw.sheet import legend
from allsight.draw.text import fit, font, line_height_px, measure, wrap

_PAPER, _INK, _FAINT = (255, 255, 255), (30, 34, 40), (222, 225, 229)
_BAR_PX, _GAP_PX = 11, 9


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        series: Which series it belongs to.
        value: Its length.
        text: Written at its end.
        marks: Values at which a short line crosses it: where it should end.
    """

    series: str
    value: float
    text: str
    marks: tuple[float, ...] = field(default=())


def draw_bars(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    colors: Mapping[str, Rgb],
    *,
    title: str,
    note: str = "",
    base: float | None = None,
    width_px: int = 900,
    size_px: int = 13,
) -> UInt8[np.ndarray, "h w 3"]:
    """Horizontal bars from zero, in groups with a label to the left of each.

    Args:
        groups: Label and bars.
        colors: Series -> colour; all series are in the legend.
        title: First line.
        note: Below the legend, broken into lines.
        base: A value with a line through all bars, such as the 1 of ratios.
        width_px: Of the picture; the height follows.
        size_px: Height of the letters.

    Raises:
        ValueError: A bar of a series without a colour, or one whose value is negative or not finite.
    """
    bars = [bar for _, members in groups for bar in members]
    for bar in bars:
        if bar.series not in colors or not 0 <= bar.value < math.inf:
            raise ValueError(f"draw_bars: expected values >= 0 of {', '.join(colors)}, got {bar}")
    step = line_height_px(size_px)
    left = max((measure(label, size_px)[0] for label, _ in groups), default=0)
    left = min(left, width_px // 2) + 8
    right = max((measure(bar.text, size_px)[0] for bar in bars), default=0)
    largest = max((max(bar.value, *bar.marks, base or 0.0) for bar in bars), default=1.0) or 1.0
    scale = (width_px - left - right - 12) / largest

    head = _head(title, note, colors, width_px, size_px)
    heights = [max(step, _BAR_PX * len(members)) + _GAP_PX for _, members in groups]
    canvas = Image.new("RGB", (width_px, sum(heights) + 2 * step), _PAPER)
    pen = ImageDraw.Draw(canvas)
    bottom = sum(heights)
    for tick in _ticks(largest):
        x = left + round(tick * scale)
        pen.line((x, 0, x, bottom), fill=_FAINT)
        pen.text((x, bottom + 2), f"{tick:g}", fill=_INK, font=font(size_px), anchor="ma")
    top = _GAP_PX // 2
    for (label, members), height in zip(groups, heights, strict=True):
        middle = top + _BAR_PX * len(members) / 2
        text = fit(label, size_px, left - 4)
        pen.text((left - 8, middle), text, fill=_INK, font=font(size_px), anchor="rm")
        for row, bar in enumerate(members):
            _draw_bar(pen, bar, colors[bar.series], left, top + row * _BAR_PX, scale, size_px)
        top += height
    if base is not None:
        x = left + round(base * scale)
        pen.line((x, 0, x, bottom), fill=_INK)
    return np.concatenate([head, np.array(canvas)])


def _draw_bar(
    pen: ImageDraw.ImageDraw, bar: Bar, color: Rgb, left: int, top: int, scale: float, size_px: int
) -> None:
    end = left + round(bar.value * scale)
    pen.rectangle((left, top + 1, max(end, left + 1), top + _BAR_PX - 2), fill=color)
    letters = font(size_px - 2)
    width, start = round(letters.getlength(bar.text)), end + 4
    for mark in sorted(bar.marks):
        x = left + round(mark * scale)
        pen.rectangle((x - 1, top - 1, x, top + _BAR_PX), fill=_INK)
        if start - 3 <= x <= start + width + 2:
            start = x + 4
    pen.text((start, top + _BAR_PX / 2 - 1), bar.text, fill=_INK, font=letters, anchor="lm")


def _head(
    title: str, note: str, colors: Mapping[str, Rgb], width_px: int, size_px: int
) -> UInt8[np.ndarray, "h w 3"]:
    step = line_height_px(size_px)
    lines = wrap(note, size_px - 1, width_px - 16) if note else []
    key = legend(list(colors), list(colors.values()), width_px=width_px - 8, size_px=size_px)
    key = np.pad(key, ((0, 0), (8, 0), (0, 0)), constant_values=255)
    top = Image.new("RGB", (width_px, 2 * step), _PAPER)
    ImageDraw.Draw(top).text(
        (8, step // 3), fit(title, size_px + 2, width_px), fill=_INK, font=font(size_px + 2)
    )
    below = Image.new("RGB", (width_px, step * len(lines) + step), _PAPER)
    pen = ImageDraw.Draw(below)
    for number, line in enumerate(lines):
        pen.text((8, number * step), line, fill=_INK, font=font(size_px - 1))
    return np.concatenate([np.array(top), key, np.array(below)])


def _ticks(largest: float) -> list[float]:
    """From zero in round steps, about eight of them."""
    power = 10.0 ** math.floor(math.log10(largest / 8))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 8 >= largest * 0.999)
    return [number * step for number in range(int(largest / step + 1e-9) + 1)]
