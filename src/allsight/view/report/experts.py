"""What the routers of a mixture of experts do: how sure they are, and which experts work."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from allsight.view.charts import COLORS, Line, line_chart
from allsight.view.curves import Series
from allsight.view.figures import count, percent
from allsight.view.markup import Html, group, tag
from allsight.view.record import RunRecord
from allsight.view.report.page import charts

MONITOR = re.compile(r"(?:^|/)(gate_entropy|expert_load)/")
"""What monitors shown here are called; the others have a section of their own."""
_MOST_COLUMNS = 60
_WIDTH_PX, _ROW_PX = 300, 13


def experts(record: RunRecord) -> Html | None:
    """Gate entropy of each router over steps, and the share of choices that each expert got; None without."""
    entropies, loads = _by_router(record.monitors)
    if not entropies:
        return None
    span = (0.0, float(record.steps_done))
    number = max((len(own) for own in loads.values()), default=0)
    note = f"nats; {math.log(number):.2f} is even over {number} experts" if number else "nats"
    drawn = []
    for kind in dict.fromkeys(_kind(name) for name in entropies):
        own = [name for name in entropies if _kind(name) == kind]
        lines = [
            Line(
                f"block {_layer(name)}",
                entropies[name].x(),
                entropies[name].y(),
                COLORS[n % len(COLORS)],
                style,
            )
            for n, name in enumerate(own)
            for style in ("dots" if len(entropies[name]) < 20 else "line",)
        ]
        drawn.append(line_chart(f"gate entropy: {kind}", lines, from_zero=True, x_range=span, note=note))
    strips = [_strip(name, own) for name, own in loads.items()]
    about = (
        "Each row is an expert, from left to right go the steps; white is no choice, the darkest blue "
        "all of a row's possible share. An even share is marked in the caption."
    )
    return group(
        [charts(drawn), tag("h3", "load of experts"), tag("p", about, class_="note"), charts(strips)]
    )


def _by_router(
    monitors: Mapping[str, Series],
) -> tuple[dict[str, Series], dict[str, dict[int, Series]]]:
    entropies: dict[str, Series] = {}
    loads: dict[str, dict[int, Series]] = {}
    for name, series in monitors.items():
        entropy = re.search(r"(?:^|/)gate_entropy/(.+)$", name)
        load = re.search(r"(?:^|/)expert_load/(.+)/(\d+)$", name)
        if entropy:
            entropies[entropy[1]] = series
        elif load:
            loads.setdefault(load[1], {})[int(load[2])] = series
    return entropies, loads


def _strip(name: str, loads: Mapping[int, Series]) -> Html:
    """Experts as rows, steps as columns; neighbouring steps share a column where there are many."""
    table = np.stack([loads[expert].y() for expert in sorted(loads)])
    steps = loads[min(loads)].x()
    groups = np.array_split(np.arange(table.shape[1]), min(_MOST_COLUMNS, table.shape[1]))
    cell = _WIDTH_PX / len(groups)
    # Two experts a token cannot give one of them more than half: colours end at the largest share there is.
    most = max(float(np.nanmax(table)), 1e-9)
    cells = []
    for row, expert in enumerate(sorted(loads)):
        for column, members in enumerate(groups):
            share = float(np.nanmean(table[row, members]))
            hint = f"step {count(int(steps[members[0]]))}, expert {expert}: {percent(share)}"
            cells.append(
                tag(
                    "rect", tag("title", hint), x=f"{24 + column * cell:.2f}", y=row * _ROW_PX,
                    width=f"{cell + 0.3:.2f}", height=_ROW_PX - 1, fill=_shade(share / most),
                )
            )  # fmt: skip
        cells.append(tag("text", str(expert), x=16, y=row * _ROW_PX + 10, text_anchor="end"))
    last = table[:, -1]
    caption = tag(
        "figcaption",
        tag("b", f"{_kind(name)}, block {_layer(name)}"),
        tag(
            "span",
            f"last {percent(float(np.nanmin(last)))} to {percent(float(np.nanmax(last)))}, even "
            f"{percent(1 / len(loads))}",
            class_="quiet",
        ),
    )
    svg = tag(
        "svg", *cells, viewBox=f"0 0 {_WIDTH_PX + 26} {_ROW_PX * len(loads)}", role="img",
        aria_label=f"Load of the experts of {name} over steps",
    )  # fmt: skip
    return tag("figure", caption, svg, class_="chart")


def _shade(strength: float) -> str:
    red, green, blue = (round(247 + (end - 247) * min(max(strength, 0.0), 1.0)) for end in (8, 74, 120))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _kind(router: str) -> str:
    return "attention" if router.endswith("attn_router") else "MLP"


def _layer(router: str) -> str:
    return router.split(".")[0]
