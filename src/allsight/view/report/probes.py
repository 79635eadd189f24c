"""What probes made of the features."""

from __future__ import annotations

import math

from allsight.view.charts import COLORS, Line, line_chart
from allsight.view.curves import Series
from allsight.view.figures import count, moment, short
from allsight.view.markup import Html, group
from allsight.view.record import RunRecord
from allsight.view.report.page import charts, table

_SETTINGS = ("neighbours", "temperature", "weight_decay", "held_out")
_APART = ("top1", "train_samples", "val_samples", "seconds")


def probes(record: RunRecord) -> Html | None:
    """Curves of those that were made several times, and a row for each; None without any."""
    if not record.probes:
        return None
    rows = []
    for event in record.probes:
        values = event["values"]
        others = [name for name in values if name not in (*_SETTINGS, *_APART)]
        rows.append(
            [
                event["task"] or "",
                count(event["step"]),
                event["text"],
                short(values.get("top1", math.nan)),
                ", ".join(f"{name} {short(values[name])}" for name in others),
                ", ".join(f"{name} {values[name]:.4g}" for name in _SETTINGS if name in values),
                " / ".join(
                    count(values[name]) for name in ("train_samples", "val_samples") if name in values
                ),
                moment(event["time"]),
            ]
        )
    head = ("task", "step", "probe", "top1", "further", "settings", "pictures", "when")
    return group([_curves(record), table(head, rows, numbers=(1, 3), wide=(2, 4, 5, 7))])


def _curves(record: RunRecord) -> Html:
    """top1 over steps of each probe that was made at several."""
    found: dict[str, Series] = {}
    for event in record.probes:
        if "top1" in event["values"]:
            what = event["text"].partition(", weights")[0]
            found.setdefault(f"{event['task']}: {what}", Series()).add(event["step"], event["values"]["top1"])
    several = {name: series for name, series in found.items() if len(series) > 1}
    if not several:
        return Html("")
    lines = [
        Line(name, series.x(), series.y(), COLORS[i % len(COLORS)], "dots")
        for i, (name, series) in enumerate(several.items())
    ]
    span = (0.0, float(max(record.steps_done, *(line.x.max() for line in lines))))
    note = "at step 0: the weights that the run started from"
    return charts([line_chart("top1 of probes", lines, x_range=span, note=note)])


def _pictures(values: dict[str, float]) -> str:
    train, val = (count(values.get(f"{split}_samples", math.nan)) for split in ("train", "val"))
    return f"{train} train, {val} val"
