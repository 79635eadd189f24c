"""The close look at some steps that a run with `profile.steps` took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from allsight.view.charts import BLUE, GREEN, ORANGE, PURPLE, VERMILION, Line, line_chart
from allsight.view.figures import clock, count, percent
from allsight.view.markup import Html, group, tag
from allsight.view.report.page import charts, table

PHASES = {
    "data": ("waiting for data", ORANGE),
    "forward": ("forward", BLUE),
    "backward": ("backward", PURPLE),
    "optimiser": ("optimiser", GREEN),
    "exchange": ("exchange", VERMILION),
    "communication": ("communication that nothing ran beside", VERMILION),
    "other": ("other", "#b9c4cc"),
}
"""Part of a step -> how it is called, and its colour."""
_MOST_RANKS = 16


def profile(folder: Path, problems: list[str]) -> Html | None:
    """Time of each rank, operators of the first one, its memory; None where there is no profile.

    Args:
        folder: The run folder.
        problems: What cannot be read is added here.
    """
    file = folder / "profile" / "summary.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        parts = [
            tag("p", _headline(found)),
            tag("h3", "time of each rank"),
            _ranks(found["ranks"]),
            charts([_memory(found)]),
            tag("h3", "operators of rank 0"),
            _operators(found),
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problems.append(f"profile/summary.json cannot be read: {type(error).__name__}: {error}")
        return None
    traces = len(list(file.parent.glob("trace-rank-*.json")))
    where = f"Traces of {count(traces)} ranks for chrome://tracing or Perfetto are in profile/."
    return group([*parts, tag("p", where, class_="note")])


def _headline(found: Mapping[str, Any]) -> str:
    steps = found["last"] - found["first"] + 1
    longest = max(each["seconds"] for each in found["ranks"])
    rate = found["samples"] / longest
    return f"{found['text']}. {clock(longest)} for {steps} steps, {rate:,.0f} samples/s while looked at."


def _ranks(ranks: Sequence[Mapping[str, Any]]) -> Html:
    """A bar for each rank, in the same scale."""
    longest = max(each["seconds"] for each in ranks)
    # Of many, those with most and with least work of their own.
    shown = sorted(ranks, key=_own_s, reverse=True)
    shown = sorted(
        shown if len(shown) <= _MOST_RANKS else [*shown[: _MOST_RANKS // 2], *shown[-_MOST_RANKS // 2 :]],
        key=lambda each: each["rank"],
    )
    rows = []
    for each in shown:
        bars = [
            tag(
                "i",
                style=f"width:{100 * seconds / longest:.2f}%;background:{PHASES[name][1]}",
                title=f"{PHASES[name][0]} {clock(seconds)}, {percent(seconds / each['seconds'])}",
            )
            for name, seconds in each["parts"].items()
            if seconds > 0
        ]
        words = f"rank {each['rank']}: {clock(each['seconds'])}, of it own work {clock(_own_s(each))}"
        rows.append(group([tag("p", words, class_="note"), tag("div", *bars, class_="budget")]))
    total = sum(each["seconds"] for each in ranks)
    words = [
        tag("span", tag("i", class_="block", style=f"background:{PHASES[name][1]}"), PHASES[name][0],
            tag("b", percent(sum(each["parts"][name] for each in ranks) / total)))
        for name in ranks[0]["parts"]
    ]  # fmt: skip
    left = len(ranks) - len(shown)
    note = tag("p", f"{count(left)} ranks between these are not shown.", class_="note") if left else None
    return tag("div", *rows, tag("p", *words, class_="legend"), note, class_="budget-box")


def _own_s(rank: Mapping[str, Any]) -> float:
    return rank["seconds"] - rank["parts"]["communication"]


def _memory(found: Mapping[str, Any]) -> Html:
    points = np.array(found["memory"], dtype=np.float64).reshape(-1, 2)
    at, level = points[:, 0], points[:, 1] / 2**20
    phase = np.full(len(at), "other", dtype=object)
    for name, begin, end in found["lanes"]:
        phase[(at >= begin) & (at <= end)] = name
    lines: list[Line] = []
    changes = np.flatnonzero(phase[1:] != phase[:-1]) + 1
    for begin, end in pairwise([0, *changes.tolist(), len(at)]):
        label, color = PHASES[phase[begin]]
        named = {line.label for line in lines}
        # Each piece reaches to the first point of the next, so that nothing is left out between them.
        piece = slice(begin, end + 1)
        lines.append(Line("" if label in named else label, at[piece], level[piece], color))
    peaks = ", ".join(f"{each['peak_bytes'] / 2**20:,.0f}" for each in found["ranks"][:4])
    note = f"at most, by rank: {peaks} MiB" + (", …" if len(found["ranks"]) > 4 else "")
    return line_chart(
        "memory above that at the beginning, MiB", lines, x_label="seconds", from_zero=True, note=note
    )


def _operators(found: Mapping[str, Any]) -> Html:
    steps = found["last"] - found["first"] + 1
    listed = found["operators"]
    most = max((each["seconds"] for each in listed), default=0.0) or 1.0
    whole = found["ranks"][0]["seconds"]
    rows = []
    for each in listed:
        bar = tag("i", class_="bar", style=f"width:{100 * each['seconds'] / most:.1f}%")
        rows.append(
            [tag("code", each["name"]),
             group([tag("span", bar, class_="rail"), percent(each["seconds"] / whole)]),
             f"{1000 * each['seconds'] / steps:,.2f}", f"{each['calls'] / steps:,.0f}"]
        )  # fmt: skip
    return table(("operator", "own time", "ms a step", "calls a step"), rows, numbers=(2, 3))
