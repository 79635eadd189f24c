"""Line charts as inline SVG, small enough to stand side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from allsight.view.curves import Series, bucket_sums, smooth, thin
from allsight.view.figures import short
from allsight.view.markup import Html, group, tag
from allsight.view.scales import Scale, log_ticks, nice_ticks, tick_labels

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072b2", "#c8501b", "#008a63", "#a8538a", "#c98500", "#3a93c9",
)  # fmt: skip
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Okabe and Ito's colours, darkened to be readable as thin lines on white."""
INK = "#22262b"

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 24
_BUCKETS = 180
_LETTER_PX = 5.8


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        label: In the legend; empty for none.
        x, y: Points; where `y` is not finite the line has a gap.
        color: As CSS writes it.
        style: `faint` is for raw values behind their mean and does not widen the axis for outliers;
            `dots` marks every point.
    """

    label: str
    x: Float64[np.ndarray, " n"]
    y: Float64[np.ndarray, " n"]
    color: str = BLUE
    style: Literal["line", "faint", "dashed", "dots"] = "line"


def noisy(label: str, series: Series, color: str) -> list[Line]:
    """A series as its running mean in front of its raw values."""
    x, y = series.x(), series.y()
    reach = smoothing_reach(len(series))
    if reach == 0:
        return [Line(label, x, y, color, "dots" if len(x) < 20 else "line")]
    return [Line("", x, y, color, "faint"), Line(label, x, smooth(y, reach), color)]


def smoothing_reach(points: int) -> int:
    """How many neighbours to either side the running mean of a noisy series takes in."""
    return 0 if points < 20 else max(2, round(points / 80))


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    from_zero: bool = False,
    log: Literal["auto", "never"] = "never",
    x_label: str = "step",
    x_range: tuple[float, float] | None = None,
    note: str = "",
) -> Html:
    """A chart with its title, legend and last values.

    Args:
        title: Plain text.
        lines: Drawn in this order.
        from_zero: The axis starts at 0.
        log: `auto` takes a logarithmic axis if all values are positive and span more than a factor of 50.
        x_label: What the horizontal axis counts.
        x_range: Of the horizontal axis, so that charts side by side agree; None takes that of the points.
        note: Small print below the chart.
    """
    finite = [line for line in lines if np.isfinite(line.y).any()]
    caption = _caption(title, lines, is_log := log == "auto" and _spans_decades(finite))
    if not finite:
        return tag("figure", caption, tag("p", "No finite values.", class_="empty"), class_="chart")
    x = _x_scale(finite, x_range)
    y = _y_scale(finite, is_log=is_log, from_zero=from_zero)
    thinned = [thin(line.x, line.y, _BUCKETS) for line in lines]
    parts = [_axes(x, y, x_label)]
    for line, (line_x, line_y) in zip(lines, thinned, strict=True):
        parts.append(_draw(line, x(line_x), y(line_y)))
    parts.append(_gaps(lines, x))
    svg = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title} over {x_label}",
        data_chart=_hover_data(lines, thinned, x, y),
    )
    return tag("figure", caption, svg, tag("p", note, class_="note") if note else None, class_="chart")


def sparkline(series: Series, color: str) -> Html:
    """A word-sized line without axes."""
    x, y = thin(series.x(), series.y(), 60)
    if np.isfinite(y).sum() < 2:
        return Html("")
    line = Line("", x, y, color)
    place_x = Scale(float(x[0]), float(x[-1]), 2, 116)
    low, high = _padded(*_range([line]), is_log=False)
    place_y = Scale(low, high, 26, 2)
    last = np.flatnonzero(np.isfinite(y))[-1]
    dot = tag(
        "circle", cx=_number(place_x.one(float(x[last]))), cy=_number(place_y.one(float(y[last]))),
        r="2.2", fill=color,
    )  # fmt: skip
    return tag(
        "svg", _draw(line, place_x(x), place_y(y)), dot,
        viewBox="0 0 120 28", class_="spark", aria_hidden="true",
    )  # fmt: skip


def area_chart(
    title: str,
    series: Series,
    parts: Sequence[tuple[str, Series, str]],
    *,
    unit: float,
    x_range: tuple[float, float] | None = None,
    note: str = "",
) -> Html:
    """What a quantity is made of over steps: means of neighbouring steps, stacked.

    Args:
        title: Plain text, with the unit.
        series: The whole, such as the seconds of each step.
        parts: (label, part, colour); what they leave of the whole is drawn as `rest`.
        unit: Factor on all values.
        x_range: Of the horizontal axis; None takes that of the points.
        note: Small print below the chart.
    """
    whole = np.nan_to_num(series.y(), nan=0.0, posinf=0.0) * unit
    rows = [np.nan_to_num(_aligned(part, series), nan=0.0, posinf=0.0) * unit for _, part, _ in parts]
    rest = np.maximum(whole - sum(rows, np.zeros(len(whole))), 0)
    middles, sums, counts = bucket_sums(series.x(), np.stack([*rows, rest]), 60)
    tops = np.cumsum(sums / counts, axis=0)
    labels = [*((label, color) for label, _, color in parts), ("rest", "#b9c4cc")]
    lines = [Line(label, middles, top, color) for (label, color), top in zip(labels, tops, strict=True)]
    x, y = _x_scale(lines, x_range), Scale(0.0, float(max(tops.max(), 1e-9)) * 1.08, _HEIGHT - _BOTTOM, _TOP)
    shapes, floor = [], np.zeros(len(middles))
    for line, top in zip(lines, tops, strict=True):
        forth, back = _points(x(middles), y(top)), _points(x(middles)[::-1], y(floor)[::-1])
        shapes.append(tag("path", d=f"M{forth}L{back}Z", fill=line.color))
        floor = top
    own = [Line(line.label, middles, row / counts, line.color) for line, row in zip(lines, sums, strict=True)]
    svg = tag(
        "svg",
        *shapes,
        _axes(x, y, "step"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=title,
        data_chart=_hover_data(own, [(line.x, line.y) for line in own], x, y),
    )
    caption = _caption(title, own, False, values=False)
    return tag("figure", caption, svg, tag("p", note, class_="note") if note else None, class_="chart")


def _aligned(part: Series, whole: Series) -> Float64[np.ndarray, " n"]:
    known = dict(zip(part.steps, part.values, strict=True))
    return np.array([known.get(step, math.nan) for step in whole.steps], dtype=np.float64)


def _caption(title: str, lines: Sequence[Line], is_log: bool, *, values: bool = True) -> Html:
    named = [line for line in lines if line.label]
    entries = []
    for line in named:
        swatch = tag("i", class_=f"swatch {line.style}", style=f"color:{line.color}")
        finite = line.y[np.isfinite(line.y)]
        last = short(float(finite[-1])) if len(finite) and values else None
        label = line.label if len(named) > 1 or not values else None
        entries.append(tag("span", swatch if label else None, label, tag("b", last) if last else None))
    scale = tag("span", "log scale", class_="quiet") if is_log else None
    return tag("figcaption", tag("strong", title), tag("span", *entries, scale, class_="legend"))


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    lows, highs = [], []
    for line in lines:
        values = line.y[np.isfinite(line.y)]
        if len(values) == 0:
            continue
        ends = (1, 99) if line.style == "faint" else (0, 100)
        low, high = np.percentile(values, ends)
        lows.append(float(low))
        highs.append(float(high))
    return min(lows), max(highs)


def _spans_decades(lines: Sequence[Line]) -> bool:
    positive = all((line.y[np.isfinite(line.y)] > 0).all() for line in lines)
    if not lines or not positive:
        return False
    low, high = _range(lines)
    return low > 0 and high / low > 50


def _x_scale(lines: Sequence[Line], x_range: tuple[float, float] | None) -> Scale:
    low = min(float(line.x[0]) for line in lines)
    high = max(float(line.x[-1]) for line in lines)
    if x_range is not None:
        low, high = min(low, x_range[0]), max(high, x_range[1])
    if high == low:
        low, high = low - 1, high + 1
    return Scale(low, high, _LEFT, _WIDTH - _RIGHT)


def _y_scale(lines: Sequence[Line], *, is_log: bool, from_zero: bool) -> Scale:
    low, high = _range(lines)
    low, high = _padded(min(low, 0.0) if from_zero else low, high, is_log=is_log)
    return Scale(0.0 if from_zero and low < 0 else low, high, _HEIGHT - _BOTTOM, _TOP, is_log)


def _padded(low: float, high: float, *, is_log: bool) -> tuple[float, float]:
    if is_log:
        factor = (high / low) ** 0.05
        return low / factor, high * factor
    # Relative, so that a constant of any size keeps a range that floats can tell apart.
    least = max(abs(low), abs(high)) * 1e-3 or 1.0
    pad = max((high - low) * 0.06, least if high - low < least else 0.0)
    return low - pad, high + pad


def _axes(x: Scale, y: Scale, x_label: str) -> Html:
    ticks = log_ticks(y.low, y.high) if y.log else nice_ticks(y.low, y.high, 4)
    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        place = _number(y.one(tick))
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place, class_="grid"))
        parts.append(tag("text", label, x=_LEFT - 6, y=place, dy="0.32em", text_anchor="end"))
    floor = _HEIGHT - _BOTTOM
    parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, class_="axis"))
    # Steps and samples are whole numbers: no ticks between them.
    marks = [tick for tick in nice_ticks(x.low, x.high, 4) if tick >= 0 and abs(tick - round(tick)) < 1e-6]
    labels, end = tick_labels(marks), float(_WIDTH - 1)
    if marks and x.one(marks[-1]) >= end - _LETTER_PX * (len(labels[-1]) + len(x_label) + 2):
        # No room beside the last number: they become one text.
        end = min(end, x.one(marks[-1]) + _LETTER_PX * len(labels[-1]) / 2)
        x_label, labels = f"{x_label} {labels[-1]}", [*labels[:-1], ""]
    begin = end - _LETTER_PX * (len(x_label) + 1)
    for tick, label in zip(marks, labels, strict=True):
        place = x.one(tick)
        parts.append(tag("line", x1=_number(place), x2=_number(place), y1=floor, y2=floor + 4, class_="axis"))
        if label and place + _LETTER_PX * len(label) / 2 < begin:
            parts.append(tag("text", label, x=_number(place), y=_HEIGHT - 6, text_anchor="middle"))
    parts.append(tag("text", x_label, x=_number(end), y=_HEIGHT - 6, text_anchor="end"))
    return tag("g", *parts, class_="axes")


def _draw(line: Line, x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> Html:
    """The line in pixels; beyond the plot it is held at its rim."""
    y = np.where(np.isfinite(y), np.clip(y, 1, _HEIGHT - _BOTTOM + 1), np.nan)
    runs = []
    for part in _unbroken(y):
        points = _points(x[part], y[part])
        runs.append(f"M{points}" if part.stop - part.start > 1 else f"M{points}h0.01")
    path = tag(
        "path", d="".join(runs), fill="none", stroke=line.color,
        stroke_width="1" if line.style == "faint" else "1.7",
        stroke_opacity="0.28" if line.style == "faint" else None,
        stroke_dasharray="5 3" if line.style == "dashed" else None,
        stroke_linejoin="round", stroke_linecap="round",
    )  # fmt: skip
    if line.style != "dots" or len(x) > 60:
        return path
    dots = [
        tag("circle", cx=_number(float(a)), cy=_number(float(b)), r="2.4", fill=line.color)
        for a, b in zip(x, y, strict=True)
        if np.isfinite(b)
    ]
    return tag("g", path, *dots)


def _gaps(lines: Sequence[Line], x: Scale) -> Html:
    """A small triangle at the top wherever a raw value is not finite."""
    places = sorted({float(at) for line in lines for at in line.x[~np.isfinite(line.y)]})[:200]
    marks = []
    for place in places:
        at = x.one(place)
        path = tag(
            "path", tag("title", f"not finite at {place:g}"), d=f"M{at - 4:.1f} 1h8l-4 7z", fill=VERMILION
        )
        marks.append(path)
    return group(marks)


def _unbroken(y: Float64[np.ndarray, " n"]) -> list[slice]:
    """Stretches of finite values."""
    finite = np.concatenate([[False], np.isfinite(y), [False]])
    turns = np.flatnonzero(finite[1:] != finite[:-1])
    return [slice(int(a), int(b)) for a, b in zip(turns[::2], turns[1::2], strict=True)]


def _points(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> str:
    return "L".join(f"{_number(float(a))} {_number(float(b))}" for a, b in zip(x, y, strict=True))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _hover_data(
    lines: Sequence[Line],
    thinned: Sequence[tuple[np.ndarray, np.ndarray]],
    x: Scale,
    y: Scale,
) -> str:
    """What the page's script needs to show values under the pointer."""
    shown = []
    for line, (line_x, line_y) in zip(lines, thinned, strict=True):
        if not line.label:
            continue
        # Fewer points than are drawn: nobody points at single pixels.
        stride = max(1, len(line_x) // 120)
        shown.append(
            {
                "name": line.label,
                "color": line.color,
                "x": [float(f"{value:.6g}") for value in line_x[::stride]],
                "y": [float(f"{value:.4g}") if math.isfinite(value) else None for value in line_y[::stride]],
            }
        )
    box = {"x": [x.low, x.high, x.start, x.end], "y": [y.low, y.high, y.start, y.end], "log": y.log}
    return json.dumps({**box, "lines": shown}, separators=(",", ":"))
