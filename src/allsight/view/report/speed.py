"""Where the time went: throughput, waiting, slowest steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from allsight.view.charts import BLUE, GREEN, PURPLE, Line, area_chart, line_chart, noisy
from allsight.view.curves import Series, bucket_sums
from allsight.view.figures import clock, count, percent, short
from allsight.view.markup import Html, group, tag
from allsight.view.record import RunRecord
from allsight.view.report.page import charts, table
from allsight.view.report.profile import PHASES

_SLOWEST = 8


def speed(record: RunRecord) -> Html:
    """Throughput and time over steps, the whole run's time, time by task, slowest steps."""
    seconds = record.steps.get("seconds", Series())
    if not len(seconds):
        return tag("p", "No step has been timed yet.", class_="empty")
    drawn = _tasks_of_steps(record)
    parts = [_budget(record), charts(_charts(record, seconds))]
    by_task = _by_task(record, drawn)
    if by_task is not None:
        parts += [tag("h3", "time by task"), by_task]
    costs = _data_costs(record)
    if costs is not None:
        parts += [tag("h3", "data by task"), costs]
    parts += [tag("h3", "slowest steps"), _slowest(record, seconds, drawn)]
    return group(parts)


def _charts(record: RunRecord, seconds: Series) -> list[Html]:
    parts, span = [], (0.0, float(record.steps_done))
    samples = record.steps.get("samples")
    if samples is not None and samples.steps == seconds.steps:
        rows = np.nan_to_num(np.stack([samples.y(), seconds.y()]), nan=0.0, posinf=0.0)
        middles, sums, counts = bucket_sums(seconds.x(), rows, 60)
        rate = sums[0] / np.maximum(sums[1], 1e-9)
        note = f"mean of {round(float(counts.max()))} steps" if counts.max() > 1 else ""
        parts.append(
            line_chart(
                "images per second",
                [Line("images/s", middles, rate, BLUE)],
                from_zero=True,
                x_range=span,
                note=note,
            )
        )
    split = [(*PHASES["data"], record.steps.get("wait_s", Series()))]
    for name in ("forward", "backward", "exchange", "optimiser"):
        if f"{name}_s" in record.steps:
            split.append((*PHASES[name], record.steps[f"{name}_s"]))
    layers = [(label, series, color) for label, color, series in split]
    note = "exchange: what ranks say to each other outside the passes, waiting included" if split[1:] else ""
    parts.append(area_chart("milliseconds a step", seconds, layers, unit=1000.0, x_range=span, note=note))
    if len(mfu := record.steps.get("mfu", Series())):
        lines = noisy("MFU", mfu, GREEN)
        note = "the model's arithmetic as a share of what the devices can do"
        parts.append(line_chart("model FLOPs utilisation", lines, from_zero=True, x_range=span, note=note))
    if len(peak := record.steps.get("peak_bytes", Series())):
        line = Line("rank 0", peak.x(), peak.y() / 2**30, PURPLE)
        parts.append(line_chart("peak memory, GiB", [line], from_zero=True, x_range=span))
    return parts


def _budget(record: RunRecord) -> Html:
    """One bar for the wall time of the whole run."""
    wait = _sum(record.steps.get("wait_s"))
    work = max(_sum(record.steps.get("seconds")) - wait, 0.0)
    saving = sum(event["values"].get("seconds", 0.0) for event in record.of_kind("checkpoint"))
    known = [
        ("training", work, "#3a7ca5"),
        ("waiting for data", wait, "#e0a030"),
        ("evaluation", record.eval_seconds, "#6aa584"),
        ("checkpoints", saving, "#a8749b"),
        ("steps done again", record.repeated_seconds, "#c8501b"),
    ]
    known = [(name, value, color) for name, value, color in known if math.isfinite(value) and value > 0]
    total = max(record.last_s - record.begun_s, sum(value for _, value, _ in known), 1e-9)
    rest = total - sum(value for _, value, _ in known)
    shares = [*known, ("other", rest, "#d3d8dc")] if rest > 0.005 * total else known
    bars = [
        tag("i", style=f"width:{100 * value / total:.2f}%;background:{color}", title=f"{name} {clock(value)}")
        for name, value, color in shares
    ]
    words = [
        tag("span", tag("i", class_="block", style=f"background:{color}"), name, tag("b", clock(value)),
            tag("span", percent(value / total), class_="quiet"))
        for name, value, color in shares
    ]  # fmt: skip
    return tag(
        "div", tag("div", *bars, class_="budget"), tag("p", *words, class_="legend"), class_="budget-box"
    )


def _by_task(record: RunRecord, drawn: dict[int, tuple[str, ...]]) -> Html | None:
    """Steps, samples and time of each task; time only of steps that had a single task."""
    if len(record.tasks) < 2:
        return None
    seconds, samples = record.steps.get("seconds", Series()), record.steps.get("samples", Series())
    sizes = dict(zip(samples.steps, samples.values, strict=True))
    own: dict[str, list[tuple[float, float]]] = {name: [] for name in record.tasks}
    for step, value in _finite(seconds):
        tasks = drawn.get(step, ())
        if len(tasks) == 1:
            own[tasks[0]].append((value, sizes.get(step, math.nan)))
    total = sum(value for _, value in _finite(seconds))
    rows = []
    for name, pairs in own.items():
        if not pairs:
            continue
        times = [time for time, _ in pairs]
        images = sum(size for _, size in pairs)
        rows.append(
            [tag("b", name), count(len(pairs)), f"{1000 * float(np.median(times)):,.0f} ms",
             percent(sum(times) / total), short(images / max(sum(times), 1e-9))]
        )  # fmt: skip
    head = ("task", "steps of its own", "median step", "share of step time", "images/s")
    return table(head, rows, numbers=range(1, 5)) if rows else None


def _data_costs(record: RunRecord) -> Html | None:
    """What reading and preparing the samples of each task took, on the first rank."""
    total_s = _sum(record.steps.get("seconds"))
    rows = []
    for name, task in record.tasks.items():
        samples = _sum(task.data.get("samples"))
        if not samples > 0:
            continue
        each = [1000 * _sum(task.data.get(part)) / samples for part in ("read_s", "transform_s", "collate_s")]
        wait_s, size = _sum(task.data.get("wait_s")), _sum(task.data.get("bytes"))
        corrupt = sum(event["task"] == name for event in record.of_kind("data"))
        rows.append(
            [tag("b", name), count(round(samples)), *(f"{ms:,.2f}" for ms in each),
             f"{size / samples / 1e3:,.0f}", percent(wait_s / max(total_s, 1e-9)), count(corrupt)]
        )  # fmt: skip
    head = (
        "task",
        "samples",
        "read, ms",
        "transform, ms",
        "collate, ms",
        "kB",
        "waited, of step time",
        "corrupt",
    )
    return table(head, rows, numbers=range(1, 8)) if rows else None


def _slowest(record: RunRecord, seconds: Series, drawn: dict[int, tuple[str, ...]]) -> Html:
    """The steps that took most longer than is usual for steps of the same tasks."""
    times: dict[tuple[str, ...], list[float]] = {}
    for step, value in _finite(seconds):
        times.setdefault(drawn.get(step, ()), []).append(value)
    usual = {tasks: float(np.median(values)) for tasks, values in times.items()}
    excess = [(value - usual[drawn.get(step, ())], step, value) for step, value in _finite(seconds)]
    waits = record.steps.get("wait_s", Series())
    near: dict[int, set[str]] = {}
    for event in record.others:
        near.setdefault(event["step"], set()).add(event["kind"])
    starts = {int(event["values"].get("from_step", -1)) for event in record.of_kind("restart")}
    rows = []
    for _, step, value in sorted(excess, key=lambda entry: (-entry[0], entry[1]))[:_SLOWEST]:
        tasks, wait = drawn.get(step, ()), waits.at(step)
        words = ["first step of a process"] if step in starts | {seconds.steps[0]} else []
        words += sorted(near.get(step, set()))
        words += ["waited for data"] if wait is not None and wait > 0.5 * value else []
        rows.append(
            [count(step), f"{1000 * value:,.0f} ms", f"{1000 * usual[tasks]:,.0f} ms",
             f"{value / max(usual[tasks], 1e-12):.1f} ×", "–" if wait is None else f"{1000 * wait:,.0f} ms",
             ", ".join(tasks) or "–", ", ".join(words)]
        )  # fmt: skip
    note = "Usual is the median of the steps with the same tasks; the list is by the time above it."
    head = ("step", "time", "usual", "ratio", "of it waiting", "tasks", "what was there")
    return group([table(head, rows, numbers=range(0, 5)), tag("p", note, class_="note")])


def _tasks_of_steps(record: RunRecord) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for name, task in record.tasks.items():
        for step in task.train.get("loss", Series()).steps:
            found[step] = (*found.get(step, ()), name)
    return found


def _finite(series: Series) -> Iterator[tuple[int, float]]:
    return ((s, v) for s, v in zip(series.steps, series.values, strict=True) if math.isfinite(v))


def _sum(series: Series | None) -> float:
    return sum(value for _, value in _finite(series)) if series else 0.0
