"""This run beside others that share tasks with it, at equally many samples of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allsight.view.charts import COLORS, Line, line_chart
from allsight.view.figures import count, short
from allsight.view.markup import Html, group, tag
from allsight.view.record import RunRecord, TaskRecord
from allsight.view.report.page import charts, table


@dataclass(frozen=True)
class Track:
    """The main metric of one task in one run, over the task's own training samples."""

    run: str
    samples: tuple[float, ...]
    values: tuple[float, ...]

    def nearest(self, samples: float) -> tuple[float, float]:
        """(samples, value) of the evaluation nearest to so many samples; the earlier of equals."""
        return min(
            zip(self.samples, self.values, strict=True), key=lambda pair: (abs(pair[0] - samples), pair[0])
        )


def track(record: RunRecord, task: TaskRecord, metric: str) -> Track | None:
    """None if the run has not judged this metric of the task."""
    series = task.judged.values.get(metric) if task.judged else None
    if not series:
        return None
    own = task.train.get("samples") or task.train.get("loss")
    if own is None:
        return None
    weights = (
        own.y() if "samples" in task.train else np.full(len(own), float(task.settings.get("batch_size") or 1))
    )
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(weights, nan=0.0))])
    places = np.searchsorted(own.x(), series.x(), side="left")
    return Track(record.name, tuple(float(v) for v in total[places]), tuple(series.values))


def comparison(record: RunRecord, others: Sequence[RunRecord]) -> Html:
    """A table and a chart for each task that one of the others has too."""
    rows, drawn = [], []
    for index, task in enumerate(record.tasks.values()):
        main = task.main()
        own = track(record, task, main[0]) if main else None
        if main is None or own is None:
            continue
        tracks = [own]
        for other in others:
            theirs = other.tasks.get(task.name)
            found = track(other, theirs, main[0]) if theirs else None
            if found is None:
                continue
            tracks.append(found)
            rows.append(_row(task.name, main[0], own, found, _company(other)))
        if len(tracks) > 1:
            drawn.append(_chart(task.name, main[0], tracks, index))
    if not rows:
        return tag("p", "The other runs have judged none of this run's tasks.", class_="empty")
    head = ("task", "metric", "here", "other", "difference", "other run", "samples here", "samples there")
    note = (
        "Each pair is taken where both runs have seen about equally many samples of the task, as late as "
        "both go; the runs were judged at steps of their own, so the counts need not be quite equal."
    )
    return group([table(head, rows, numbers=(2, 3, 4, 6, 7)), tag("p", note, class_="note"), charts(drawn)])


def _row(task: str, metric: str, own: Track, other: Track, company: str) -> list[str]:
    until = min(own.samples[-1], other.samples[-1])
    (own_samples, here), (other_samples, there) = own.nearest(until), other.nearest(until)
    return [
        tag("b", task), metric, tag("b", short(here)), short(there), f"{here - there:+.4f}",
        group([other.run, tag("span", f" ({company})", class_="quiet")]),
        count(own_samples), count(other_samples),
    ]  # fmt: skip


def _company(record: RunRecord) -> str:
    """Whether the other run trained a task by itself."""
    return "alone" if len(record.tasks) == 1 else f"with {len(record.tasks)} tasks"


def _chart(task: str, metric: str, tracks: list[Track], index: int) -> Html:
    lines = []
    for number, each in enumerate(tracks):
        color = (
            COLORS[index % len(COLORS)]
            if number == 0
            else ("#22262b", "#7a828a", "#a9b0b6")[(number - 1) % 3]
        )
        x, y = np.array(each.samples, dtype=np.float64), np.array(each.values, dtype=np.float64)
        lines.append(Line(each.run, x, y, color, "dots" if number == 0 else "dashed"))
    return line_chart(f"{task}: {metric}", lines, x_label="own samples", x_range=(0.0, 0.0))
