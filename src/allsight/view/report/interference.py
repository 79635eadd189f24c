"""Whether tasks help or hurt each other: a table of pairs, and where in the model they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

from allsight.view.figures import moment
from allsight.view.markup import Html, group, tag
from allsight.view.record import RunRecord
from allsight.view.signed_map import signed_map

_MOST_PAIRS = 30
_ABOUT = (
    "Effect of one step: a step along the gradient of the column's task changes the row's held-out "
    "loss by so much of what the row's own step does: 1 helps as much, 0 not at all, below 0 it hurts. By "
    "part of the model: cosine of the two tasks' mean gradients."
)


def interference(record: RunRecord) -> Html | None:
    """The newest measurement; None without one."""
    event = record.interference
    if event is None:
        return None
    tables = _tables(event["values"])
    whole = tables.pop("whole", {})
    tasks = list(dict.fromkeys(i for i, _ in whole))
    if not tasks:
        return None
    rows = [[whole.get((i, j), math.nan) for j in tasks] for i in tasks]
    parts = [
        tag("p", _ABOUT, class_="note"),
        signed_map(rows, tasks, tasks, corner="loss of ↓   step of →", what="Effect of tasks on each other"),
    ]
    if len(tasks) > 1:
        parts += [tag("h3", "by part of the model"), _by_part(tables, tasks)]
    said = f"{event['text']}, {moment(event['time'])}" if event["text"] else moment(event["time"])
    return group([*parts, tag("p", said, class_="note")])


def _by_part(tables: Mapping[str, Mapping[tuple[str, str], float]], tasks: list[str]) -> Html:
    pairs = list(combinations(tasks, 2))
    shown = {
        part: table
        for part, table in tables.items()
        # Parts that no two tasks share say nothing.
        if any(math.isfinite(value := table.get(pair, math.nan)) and value for pair in pairs)
    }
    note = ""
    if len(pairs) > _MOST_PAIRS:
        strength = {
            pair: max(abs(v) for t in shown.values() if math.isfinite(v := t.get(pair, 0.0)))
            for pair in pairs
        }
        pairs = sorted(pairs, key=lambda pair: -strength[pair])[:_MOST_PAIRS]
        note = f"The {_MOST_PAIRS} pairs that agree or disagree most in some part."
    rows = [[table.get(pair, math.nan) for table in shown.values()] for pair in pairs]
    names = [f"{a} · {b}" for a, b in pairs]
    drawn = signed_map(rows, names, list(shown), corner="", what="Cosine of gradients by part of the model")
    return group([drawn, tag("p", note, class_="note") if note else Html("")])


def _tables(values: Mapping[str, float]) -> dict[str, dict[tuple[str, str], float]]:
    """Part -> (task whose loss it is, task whose step it is) -> value."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name, value in values.items():
        part, _, pair = name.rpartition("/")
        i, sign, j = pair.partition("<")
        if part and sign:
            found.setdefault(part, {})[i, j] = float(value)
    return found
