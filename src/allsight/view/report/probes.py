"""What probes made of the features."""

from __future__ import annotations

import math

from allsight.view.figures import count, moment, short
from allsight.view.markup import Html
from allsight.view.record import RunRecord
from allsight.view.report.page import table

_SETTINGS = ("neighbours", "temperature", "weight_decay", "held_out")
_APART = ("top1", "train_samples", "val_samples", "seconds")


def probes(record: RunRecord) -> Html | None:
    """A row for each probe, in the order in which they were made; None without any."""
    if not record.probes:
        return None
    rows = []
    for event in record.probes:
        values = event["values"]
        others = [name for name in values if name not in (*_SETTINGS, *_APART)]
        rows.append(
            [
                event["task"] or "",
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
    head = ("task", "probe", "top1", "further", "settings", "pictures", "when")
    return table(head, rows, numbers=(2,), wide=(1, 3, 4, 6))


def _pictures(values: dict[str, float]) -> str:
    train, val = (count(values.get(f"{split}_samples", math.nan)) for split in ("train", "val"))
    return f"{train} train, {val} val"
