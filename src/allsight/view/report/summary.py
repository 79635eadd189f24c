"""Top of the page: what ran on what, how it stands, and how good it is."""

from __future__ import annotations

import math
from typing import Any

from allsight.view.charts import COLORS, sparkline
from allsight.view.curves import Series
from allsight.view.figures import clock, compact, count, moment, percent, short
from allsight.view.markup import Html, group, tag
from allsight.view.record import RunRecord, TaskRecord
from allsight.view.report.page import facts, table

_WORDS = {
    "finished": "finished",
    "running": "running",
    "stopped": "stopped before its end",
    "failed": "failed",
}


def header(record: RunRecord) -> Html:
    """Name, status and the facts of the run."""
    status, reason = record.status()
    environment, facts_of = record.environment, record.facts
    planned = record.steps_planned
    done = count(record.steps_done)
    steps = f"{done} of {count(planned)}" if planned is not None else done
    duration = record.last_s - record.begun_s
    parameters = facts_of.get("parameters")
    git = str(environment.get("git") or "")
    return tag(
        "header",
        tag("p", "allsight run report", class_="over"),
        tag("h1", record.name, tag("span", _WORDS[status], class_=f"status {status}")),
        tag("p", reason, class_="reason") if reason else None,
        facts(
            [
                ("recipe", _recipe(environment)),
                ("model", _join(_model(record.settings), parameters and f"{compact(parameters)} parameters")),
                ("steps done", steps),
                ("started", _moment(record.begun_s)),
                ("ended" if status != "running" else "last event", _moment(record.last_s)),
                ("duration", clock(duration) if math.isfinite(duration) else None),
                ("machine", _machine(environment, record)),
                ("versions", _versions(environment)),
                ("commit", tag("code", git[:12]) if git else None),
                ("seed", _text(record.settings.get("seed"))),
            ]
        ),
        tag("p", tag("code", _command(environment)), class_="command") if _command(environment) else None,
        _tasks(record),
    )


def tiles(record: RunRecord) -> Html:
    """The figures to look at first."""
    cells = [_task_tile(task, COLORS[i % len(COLORS)]) for i, task in enumerate(record.tasks.values())]
    seconds, wait, samples = (_total(record.steps.get(name)) for name in ("seconds", "wait_s", "samples"))
    if seconds > 0:
        cells.append(_tile("throughput", f"{short(samples / seconds)}", "images/s", "while training"))
        cells.append(_tile("waiting for data", percent(wait / seconds), "", "of the time in steps"))
    return tag("div", *cells, class_="tiles")


def _task_tile(task: TaskRecord, color: str) -> Html:
    main, best = task.main(), task.best()
    if main is None:
        loss = task.train.get("loss", Series())
        value = short(loss.values[-1]) if len(loss) else "–"
        return _tile(task.name, value, "loss" if len(loss) else "", "not evaluated yet", color)
    name, series = main
    notes = f"at step {count(series.steps[-1])}"
    if best is not None and best[0] != series.steps[-1]:
        notes += f"; best {short(best[1])} at {count(best[0])}"
    elif best is not None and len(series) > 1:
        notes += ", the best"
    return _tile(task.name, short(series.values[-1]), name, notes, color, sparkline(series, color))


def _tile(title: str, value: str, unit: str, note: str, color: str = "", extra: str = "") -> Html:
    return tag(
        "div",
        tag("h3", title),
        tag("p", tag("b", value), tag("span", unit) if unit else None, class_="value"),
        Html(extra) if extra else None,
        tag("p", note, class_="note"),
        class_="tile",
        style=f"border-top-color:{color}" if color else None,
    )


def _tasks(record: RunRecord) -> Html | None:
    if not record.tasks:
        return None
    rows = []
    for task in record.tasks.values():
        settings = task.settings
        seen = task.train.get("samples")
        rows.append(
            [
                tag("b", task.name),
                _text(settings.get("kind")) or "–",
                tag("code", _text(settings.get("data")) or "–"),
                count(len(task.classes)) if task.classes else "–",
                _text(settings.get("batch_size")) or "–",
                _share(settings.get("share")),
                _text(settings.get("loss_weight")) or "–",
                count(len(task.train.get("loss", Series()))),
                compact(_total(seen)) if seen else "–",
            ]
        )
    head = ("task", "kind", "data", "classes", "batch", "share", "loss weight", "steps drawn", "samples seen")
    return table(head, rows, numbers=range(3, 9))


def _share(share: Any) -> str:
    if isinstance(share, int | float):
        return f"{share:g}"
    if isinstance(share, list) and share:
        return "changes"
    return "–"


def _total(series: Series | None) -> float:
    return sum(value for value in (series.values if series else ()) if math.isfinite(value))


def _recipe(environment: dict[str, Any]) -> str | None:
    """What follows `train` on the command line."""
    words = environment.get("command")
    if not isinstance(words, list) or "train" not in words:
        return None
    after = words[words.index("train") + 1 :]
    return next((str(word) for word in after if not str(word).startswith("-") and "=" not in str(word)), None)


def _command(environment: dict[str, Any]) -> str:
    words = environment.get("command")
    return " ".join(str(word) for word in words) if isinstance(words, list) else ""


def _model(settings: dict[str, Any]) -> str:
    model = settings.get("model")
    if not isinstance(model, dict):
        return ""
    backbone = model.get("backbone")
    inner = backbone.get("kind") if isinstance(backbone, dict) else None
    return " on ".join(str(kind) for kind in (model.get("kind"), inner) if kind)


def _machine(environment: dict[str, Any], record: RunRecord) -> str:
    cores = environment.get("cores")
    gpus = environment.get("gpus")
    world = record.facts.get("world_size")
    threads = record.facts.get("threads")
    return _join(
        str(environment.get("cpu") or ""),
        cores and f"{cores} cores",
        ", ".join(str(gpu) for gpu in gpus) if isinstance(gpus, list) else None,
        f"device {record.device}" if record.device else None,
        f"{count(world)} processes" if world and world > 1 else None,
        f"{count(threads)} thread{'s' if threads != 1 else ''}" if threads else None,
        str(environment.get("platform") or ""),
    )


def _versions(environment: dict[str, Any]) -> str:
    names = ("allsight", "torch", "numpy", "python")
    return _join(*(f"{name} {environment[name]}" for name in names if environment.get(name)))


def _join(*parts: Any) -> str:
    return " · ".join(str(part) for part in parts if part)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _moment(time_s: float) -> str | None:
    return moment(time_s) if math.isfinite(time_s) else None


def trouble_link(number: int) -> Html | None:
    """A line under the header that leads to the warnings, where there are any."""
    if number == 0:
        return None
    words = "1 warning" if number == 1 else f"{count(number)} warnings"
    return group([tag("p", tag("a", f"{words}, see below", href="#warnings"), class_="trouble")])
