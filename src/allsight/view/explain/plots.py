"""The charts of an explanation as SVG: layers in numbers, times against the roofline."""

from __future__ import annotations

from collections.abc import Sequence

from allsight.view.charts import COLORS
from allsight.view.explain.roofline import PartTime, Peak
from allsight.view.explain.sampling import LayerStatistics
from allsight.view.figures import compact, short
from allsight.view.markup import Html, tag
from allsight.view.scales import Scale, log_ticks, nice_ticks, tick_labels

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 210, 44, 10, 12, 36


def layer_chart(title: str, unit: str, rows: Sequence[tuple[int, float, float, float]]) -> Html:
    """A mark for each layer with its low and high value, stage by stage.

    Args:
        title: Plain text.
        unit: Of the values, for the hints; empty for none.
        rows: (stage, low, middle, high) in the order of the layers; equal ones draw no whisker.
    """
    top = max(high for *_, high in rows) or 1.0
    y = Scale(0.0, top * 1.06, _HEIGHT - _BOTTOM, _TOP)
    x = Scale(-0.6, len(rows) - 0.4, _LEFT, _WIDTH - _RIGHT)
    parts = _horizontal(y, nice_ticks(0.0, top * 1.06, 4))
    radius = max(1.6, min(4.0, 110 / len(rows)))
    for number, (stage, low, middle, high) in enumerate(rows):
        place, color = x.one(number), COLORS[(stage - 1) % len(COLORS)]
        hint = f"layer {number + 1}, stage {stage}: {short(middle)} {unit}".rstrip()
        if high > low:
            hint += f" (10 % below {short(low)}, 10 % above {short(high)})"
            parts.append(_line(place, y.one(low), place, y.one(high), color, radius * 0.8, 0.4))
        dot = tag(
            "circle",
            tag("title", hint),
            cx=f"{place:.1f}",
            cy=f"{y.one(middle):.1f}",
            r=f"{radius:.1f}",
            fill=color,
        )
        parts.append(dot)
    for stage in sorted({row[0] for row in rows}):
        own = [number for number, row in enumerate(rows) if row[0] == stage]
        middle = x.one((own[0] + own[-1]) / 2)
        has_room = len(own) * (x.one(1) - x.one(0)) > 44
        words = f"stage {stage}" if has_room else str(stage)
        parts.append(_text(words, middle, _HEIGHT - 18, "middle"))
        if own[0]:
            edge = x.one(own[0] - 0.5)
            parts.append(
                tag("line", x1=f"{edge:.1f}", x2=f"{edge:.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid")
            )
    return _figure(title, parts)


def displacement_chart(statistics: Sequence[LayerStatistics]) -> Html:
    """How far offsets move samples, layer by layer."""
    rows = [(each.stage, *each.displacement_px) for each in statistics]
    return layer_chart("displacement in px: median, 10 to 90 %", "px", rows)


def points_chart(statistics: Sequence[LayerStatistics]) -> Html:
    """How many points count, layer by layer."""
    rows = [(each.stage, each.points_used, each.points_used, each.points_used) for each in statistics]
    return layer_chart("effective number of points", "", rows)


def roofline_chart(peak: Peak, parts: Sequence[PartTime]) -> Html:
    """What each part reaches over its arithmetic intensity, below what this machine could reach."""
    intensity = [part.flops / part.bytes for part in parts]
    reached = [part.flops / part.seconds for part in parts]
    low_x = min(*intensity, peak.ridge) / 2
    high_x = max(*intensity, peak.ridge) * 2
    low_y, high_y = min(*reached, low_x * peak.bytes_per_s) / 1.6, peak.flops_per_s * 1.8
    x = Scale(low_x, high_x, _LEFT, _WIDTH - _RIGHT, log=True)
    y = Scale(low_y, high_y, _HEIGHT - _BOTTOM, _TOP, log=True)
    drawn = _horizontal(y, log_ticks(low_y, high_y))
    for tick in log_ticks(low_x, high_x):
        place = x.one(tick)
        drawn.append(
            tag(
                "line",
                x1=f"{place:.1f}",
                x2=f"{place:.1f}",
                y1=_HEIGHT - _BOTTOM,
                y2=_HEIGHT - _BOTTOM + 4,
                class_="axis",
            )
        )
        drawn.append(_text(f"{tick:g}", place, _HEIGHT - 24, "middle"))
    drawn.append(_text("FLOP a byte that must be moved", _WIDTH - _RIGHT, _HEIGHT - 8, "end"))
    roof = [(low_x, low_x * peak.bytes_per_s), (peak.ridge, peak.flops_per_s), (high_x, peak.flops_per_s)]
    path = "L".join(f"{x.one(a):.1f} {y.one(b):.1f}" for a, b in roof)
    drawn.append(tag("path", d=f"M{path}", fill="none", stroke="#22262b", stroke_width="1.6"))
    drawn.append(_text(compact(peak.flops_per_s), x.one(high_x), y.one(peak.flops_per_s) - 5, "end"))
    for part, a, b in zip(parts, intensity, reached, strict=True):
        drawn.append(_mark(part, x.one(a), y.one(b), part.attainable_s(peak) / part.seconds))
    return _figure("FLOP/s reached, and the roofline", drawn, _roof_legend(parts))


def _mark(part: PartTime, x: float, y: float, share: float) -> Html:
    """A shape for the kind of part, a colour for the stage."""
    color = COLORS[(part.stage - 1) % len(COLORS)] if part.stage else "#6a727a"
    kind = part.name.partition(": ")[2]
    path = {
        "operator": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "sampling": f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
        "MLP": f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
    }.get(kind, f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z")
    hint = f"{part.name}: {1e3 * part.seconds:.2f} ms, {share:.0%} of what is attainable"
    hollow = kind == "" and part.stage
    return tag(
        "path",
        tag("title", hint),
        d=path,
        fill="#fff" if hollow else color,
        stroke=color if hollow else "#fff",
        stroke_width="1.6" if hollow else "0.8",
    )


def _roof_legend(parts: Sequence[PartTime]) -> Html:
    shapes = (("●", "block"), ("■", "operator"), ("◆", "sampling"), ("▲", "MLP"), ("○", "downsampling"))
    entries = [tag("span", f"{sign} {word}") for sign, word in shapes]
    for stage in sorted({part.stage for part in parts}):
        color = COLORS[(stage - 1) % len(COLORS)] if stage else "#6a727a"
        words = f"stage {stage}" if stage else "stem"
        entries.append(tag("span", tag("i", class_="block", style=f"background:{color}"), words))
    return tag("span", *entries, class_="legend")


def _horizontal(y: Scale, ticks: Sequence[float]) -> list[Html]:
    """Lines across, with their values."""
    labels = [compact(tick) for tick in ticks] if y.log else tick_labels(ticks)
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        place = f"{y.one(tick):.1f}"
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place, class_="grid"))
        parts.append(tag("text", label, x=_LEFT - 6, y=place, dy="0.32em", text_anchor="end"))
    floor = _HEIGHT - _BOTTOM
    parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, class_="axis"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float, opacity: float) -> Html:
    return tag(
        "line",
        x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}",
        stroke=color, stroke_width=f"{width:.1f}", stroke_opacity=opacity, stroke_linecap="round",
    )  # fmt: skip


def _text(words: str, x: float, y: float, anchor: str) -> Html:
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _figure(title: str, parts: Sequence[Html], legend: Html | None = None) -> Html:
    svg = tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)
    return tag("figure", tag("figcaption", tag("strong", title), legend), svg, class_="chart")
