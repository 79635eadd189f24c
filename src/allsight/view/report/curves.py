"""Curves of each task, and of the optimisation as a whole."""

from __future__ import annotations

import numpy as np

from allsight.view.charts import BLUE, COLORS, INK, VERMILION, Line, line_chart, noisy, smoothing_reach
from allsight.view.curves import Series
from allsight.view.figures import short
from allsight.view.markup import Html, group, tag
from allsight.view.record import Evaluations, RunRecord, TaskRecord
from allsight.view.report.page import charts

_MOST_CHARTS = 9


def curves(record: RunRecord) -> Html:
    """Losses and metrics of every task, then learning rate and gradient norm."""
    blocks = []
    span = (0.0, float(record.steps_done))
    for index, task in enumerate(record.tasks.values()):
        parts = task_charts(task, COLORS[index % len(COLORS)], span)
        body = _folded(parts) if parts else tag("p", "No step of this task yet.", class_="empty")
        blocks.append(group([tag("h3", task.name), body, _judged_once(task)]))
    shared = optimisation_charts(record, span)
    if shared:
        blocks.append(group([tag("h3", "optimisation"), charts(shared)]))
    if record.norms:
        blocks.append(group([tag("h3", "gradients and updates by part"), _folded(norm_charts(record, span))]))
    return group(blocks)


def _folded(parts: list[Html]) -> Html:
    """Charts, those beyond the first ones to be opened."""
    if len(parts) <= _MOST_CHARTS:
        return charts(parts)
    more = tag("summary", f"{len(parts) - _MOST_CHARTS} more")
    return group([charts(parts[:_MOST_CHARTS]), tag("details", more, charts(parts[_MOST_CHARTS:]))])


def task_charts(task: TaskRecord, color: str, span: tuple[float, float]) -> list[Html]:
    """One chart for the loss, one for each further loss, one for each metric measured twice or more."""
    parts = []
    names = [name for name in task.train if name != "samples"]
    if "loss" in names:
        parts.append(_loss_chart(task, color, span))
    # A single named loss is the same number again.
    single = len([name for name in names if name != "loss"]) == 1
    for name in names:
        if name != "loss" and not single:
            lines, note = noisy(name, task.train[name], color), _smoothed(task.train[name])
            parts.append(line_chart(f"loss: {name}", lines, log="auto", x_range=span, note=note))
    for name in _metric_names(task):
        if not _is_curve(task, name):
            continue
        parts.append(line_chart(name, _metric_lines(task, name, color), x_range=span))
    return parts


def _is_curve(task: TaskRecord, name: str) -> bool:
    return any(len(results.values.get(name, ())) > 1 for results in task.evaluations.values())


def _judged_once(task: TaskRecord) -> Html | None:
    """The metrics that one evaluation gave, in a line: a chart of one point says no more."""
    facts = [
        f"{name} {short(series.values[-1])}"
        for name, series in (task.judged.metrics() if task.judged else {}).items()
        if len(series) and not _is_curve(task, name)
    ]
    return tag("p", "; ".join(facts), class_="quiet") if facts else None


def optimisation_charts(record: RunRecord, span: tuple[float, float]) -> list[Html]:
    """The weighted loss where there are several tasks, learning rate and gradient norm."""
    parts = []
    steps = record.steps
    if len(record.tasks) > 1 and "loss" in steps:
        note = _smoothed(steps["loss"])
        lines = noisy("loss", steps["loss"], INK)
        parts.append(line_chart("weighted loss", lines, log="auto", x_range=span, note=note))
    if "lr" in steps:
        rate = Line("lr", steps["lr"].x(), steps["lr"].y(), BLUE)
        parts.append(line_chart("learning rate", [rate], from_zero=True, x_range=span))
    if "grad_norm" in steps:
        lines = noisy("norm", steps["grad_norm"], BLUE)
        note = _join(_smoothed(steps["grad_norm"]), "before clipping")
        parts.append(line_chart("gradient norm", lines, log="auto", x_range=span, note=note))
    if len(record.main) > 1 and len(record.tasks) > 1:
        main = Line("main", record.main.x(), record.main.y(), INK, "dots")
        parts.append(line_chart("mean of main metrics", [main], x_range=span))
    return parts


def norm_charts(record: RunRecord, span: tuple[float, float]) -> list[Html]:
    """A chart for each part of the model: norm of its gradient, and its update as a share of its weights."""
    parts = []
    for name, series in record.norms.items():
        lines = [
            Line(label, series[what].x(), series[what].y(), color)
            for what, label, color in (
                ("gradient", "gradient", BLUE),
                ("update", "update / weights", VERMILION),
            )
            if what in series
        ]
        parts.append(line_chart(name, lines, log="auto", x_range=span, note="before clipping"))
    return parts


def _loss_chart(task: TaskRecord, color: str, span: tuple[float, float]) -> Html:
    series = task.train["loss"]
    lines = noisy("train", series, color)
    judged = task.judged.values.get("loss") if task.judged else None
    if judged:
        lines.append(Line("validation", judged.x(), judged.y(), INK, "dots"))
    return line_chart("loss", lines, log="auto", x_range=span, note=_smoothed(series))


def _metric_names(task: TaskRecord) -> list[str]:
    """All metrics of all kinds of weights; the main one first."""
    names: dict[str, None] = dict.fromkeys(task.judged.metrics()) if task.judged else {}
    for results in task.evaluations.values():
        names |= dict.fromkeys(results.metrics())
    return list(names)


def _metric_lines(task: TaskRecord, name: str, color: str) -> list[Line]:
    found: list[tuple[Evaluations, Series]] = [
        (results, results.values[name]) for results in task.evaluations.values() if name in results.values
    ]
    lines = []
    for results, series in found:
        is_main = results is task.judged
        style = "dots" if is_main else "dashed"
        lines.append(Line(results.weights, series.x(), series.y(), color if is_main else INK, style))
    return lines


def _smoothed(series: Series) -> str:
    reach = smoothing_reach(len(series))
    finite = int(np.isfinite(series.y()).sum())
    lost = len(series) - finite
    return _join(f"running mean of {2 * reach + 1}" if reach else "", f"{lost} not finite" if lost else "")


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
