"""A run as its folder tells it, in columns that the report draws from."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from allsight.config import ConfigError, parse_yaml
from allsight.view.curves import Series
from allsight.view.events import Event, read_events

READS_FORMAT = 1
"""Newest version of the run folder that this code reads."""

Status = Literal["finished", "running", "stopped", "failed"]
Tree = dict[str, Any]

_ABOUT_EVALUATION = ("loss", "seconds", "samples", "corrupt")
_SILENCE_S = 120.0


@dataclass
class Evaluations:
    """Results of one task with one kind of weights (`ema` or `raw`): name of the value -> series."""

    weights: str
    values: dict[str, Series] = field(default_factory=dict)

    def metrics(self) -> dict[str, Series]:
        """Without loss, time and counts; the main metric first."""
        return {name: series for name, series in self.values.items() if name not in _ABOUT_EVALUATION}


@dataclass
class TaskRecord:
    """What a run noted about one task."""

    name: str
    settings: Tree = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    train: dict[str, Series] = field(default_factory=dict)
    """Loss name -> series over the steps that drew the task; also `samples`."""
    data: dict[str, Series] = field(default_factory=dict)
    """What the task's data took in each step, on the first rank: see `allsight.types.Costs`."""
    evaluations: dict[str, Evaluations] = field(default_factory=dict)
    """Kind of weights -> results."""

    @property
    def judged(self) -> Evaluations | None:
        """The evaluations that count: those with averaged weights where there are any."""
        return self.evaluations.get("ema") or next(iter(self.evaluations.values()), None)

    def main(self) -> tuple[str, Series] | None:
        """Name and series of the main metric."""
        metrics = self.judged.metrics() if self.judged else {}
        return next(iter(metrics.items()), None)

    def best(self) -> tuple[int, float] | None:
        """(step, value) of the greatest finite main metric, the earliest of equals."""
        main = self.main()
        pairs = [] if main is None else list(zip(main[1].steps, main[1].values, strict=True))
        return max((pair for pair in pairs if math.isfinite(pair[1])), key=lambda pair: pair[1], default=None)

    def samples_until(self, step: int) -> float:
        """Own training samples in the steps before `step`."""
        seen = self.train.get("samples", Series())
        return sum(value for at, value in zip(seen.steps, seen.values, strict=True) if at < step)


@dataclass
class RunRecord:
    """What a run folder holds, without its weights."""

    folder: Path
    settings: Tree = field(default_factory=dict)
    resolved: str = ""
    environment: Tree = field(default_factory=dict)
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    steps: dict[str, Series] = field(default_factory=dict)
    """`loss`, `lr`, `grad_norm`, `seconds`, `wait_s`, `samples` of each step."""
    main: Series = field(default_factory=Series)
    """Mean of the tasks' main metrics."""
    facts: dict[str, float] = field(default_factory=dict)
    """`parameters`, `steps`, `world_size`, `threads`."""
    device: str = ""
    norms: dict[str, dict[str, Series]] = field(default_factory=dict)
    """Part of the model -> `gradient`, `weight`, `update` in the steps in which they were noted."""
    monitors: dict[str, Series] = field(default_factory=dict)
    """What the model told about its training -> values at the steps it looked."""
    interference: Event | None = None
    """The newest measurement of how tasks help or hurt each other."""
    probes: list[Event] = field(default_factory=list)
    """What probes of the features found, in order."""
    others: list[Event] = field(default_factory=list)
    """Alarms, corrupt samples, checkpoints, restarts and notes, in order."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, and was left out."""
    begun_s: float = math.nan
    last_s: float = math.nan
    last: Event | None = None
    finished: bool = False
    repeated_seconds: float = 0.0
    repeated_steps: int = 0
    eval_seconds: float = 0.0
    now_s: float = math.nan

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.folder.name)

    @property
    def steps_done(self) -> int:
        seconds = self.steps.get("seconds") or self.steps.get("loss") or Series()
        return seconds.steps[-1] + 1 if seconds.steps else 0

    @property
    def steps_planned(self) -> int | None:
        planned = self.facts.get("steps")
        return int(planned) if planned is not None and math.isfinite(planned) else None

    def of_kind(self, kind: str) -> list[Event]:
        """Events of one kind, in order."""
        return [event for event in self.others if event["kind"] == kind]

    def take(self, event: Event) -> None:
        """Note one more event of the run."""
        _take(self, event)

    def status(self) -> tuple[Status, str]:
        """How the run stands, and the reason or the last sign of life."""
        if self.finished:
            return "finished", ""
        last = self.last
        if last is None:
            return "stopped", "it has written no events"
        is_fatal = last["kind"] == "alarm" and "skipped" not in last["values"]
        if is_fatal and not last["text"].endswith("training goes on"):
            return "failed", last["text"]
        silence = self.now_s - self.last_s
        if silence < max(_SILENCE_S, 10 * self._slowest_step()):
            return "running", ""
        return "stopped", "no sign of life since, and no end was noted"

    def _slowest_step(self) -> float:
        seconds = [value for value in self.steps.get("seconds", Series()).values if math.isfinite(value)]
        return max(seconds, default=0.0)


def read_run(run: Path, *, now_s: float | None = None) -> RunRecord:
    """Read a run folder, also one that is being written or was cut off.

    Args:
        run: The run folder.
        now_s: Seconds since 1970 for telling a running run from a dead one; None asks the clock.
    Raises:
        ConfigError: Not a run folder, or written by a newer allsight.
    """
    record = open_record(run, now_s=now_s)
    if not (run / "events.jsonl").is_file():
        record.problems.append("events.jsonl is not there; the run has not started yet, or the file was lost")
        return record
    for event in read_events(run, tell=record.problems.append):
        record.take(event)
    return record


def open_record(run: Path, *, now_s: float | None = None) -> RunRecord:
    """What a run folder holds but its events; arguments and errors as of `read_run`."""
    record = RunRecord(folder=run, now_s=time.time() if now_s is None else now_s)
    _read_settings(record)
    record.environment = _read_json(record, "environment.json")
    tasks = record.settings.get("tasks")
    for name, settings in (tasks if isinstance(tasks, dict) else {}).items():
        record.tasks[name] = TaskRecord(name, settings if isinstance(settings, dict) else {})
    for name, classes in _read_json(record, "classes.json").items():
        if name in record.tasks and isinstance(classes, list):
            record.tasks[name].classes = tuple(str(each) for each in classes)
    return record


def _read_settings(record: RunRecord) -> None:
    run = record.folder
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such run folder; give the path of one, such as runs/NAME")
    file = run / "resolved.yaml"
    try:
        record.resolved = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{run}: not a run folder (it has no resolved.yaml); give the folder that `allsight train` wrote"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    tree = parse_yaml(record.resolved, where=str(file))
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected a mapping of settings; restore the file that the run wrote")
    found = tree.pop("format", READS_FORMAT)
    if not isinstance(found, int) or found > READS_FORMAT:
        raise ConfigError(
            f"{file}: format {found!r} is newer than this allsight reads (format {READS_FORMAT}); "
            f"update allsight"
        )
    record.settings = tree


def _read_json(record: RunRecord, name: str) -> Tree:
    try:
        tree = json.loads((record.folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        record.problems.append(f"{name} is not there")
        return {}
    except (OSError, ValueError) as error:
        record.problems.append(f"{name} cannot be read: {error}")
        return {}
    return tree if isinstance(tree, dict) else {}


def _take(record: RunRecord, event: Event) -> None:
    kind, step, values = event["kind"], event["step"], event["values"]
    if kind == "probe":
        # Comes from another process, at any time: it says nothing of how the run stands.
        record.probes.append(event)
        return
    if kind == "interference":
        record.interference = event
        return
    if kind == "ask":
        return
    if math.isnan(record.begun_s):
        record.begun_s = event["time"]
    record.last_s, record.last = event["time"], event
    if kind == "train":
        record.finished = False
        _take_train(record, event)
    elif kind == "eval":
        _take_eval(record, event)
    elif kind == "monitor":
        for name, value in values.items():
            record.monitors.setdefault(name, Series()).add(step, value)
        record.others.append(event)
    elif kind == "norms":
        for name, value in values.items():
            part, _, what = name.rpartition("/")
            record.norms.setdefault(part, {}).setdefault(what, Series()).add(step, value)
    elif kind == "monitor":
        for name, value in values.items():
            record.monitors.setdefault(name, Series()).add(step, value)
    elif kind == "data" and event["task"] is not None and "samples" in values:
        columns = record.tasks.setdefault(event["task"], TaskRecord(event["task"])).data
        for name, value in values.items():
            columns.setdefault(name, Series()).add(step, value)
    elif kind == "system":
        if event["text"] == "finished":
            record.finished = True
        else:
            record.finished = False
            record.facts |= values
            record.device = event["text"] or record.device
    else:
        if kind == "restart":
            _go_back(record, int(values.get("from_step", step)))
        record.others.append(event)


def _take_train(record: RunRecord, event: Event) -> None:
    columns = record.steps
    if event["task"] is not None:
        columns = record.tasks.setdefault(event["task"], TaskRecord(event["task"])).train
    for name, value in event["values"].items():
        columns.setdefault(name, Series()).add(event["step"], value)


def _take_eval(record: RunRecord, event: Event) -> None:
    if event["task"] is None:
        if "main" in event["values"]:
            record.main.add(event["step"], event["values"]["main"])
        return
    record.eval_seconds += event["values"].get("seconds", 0.0)
    task = record.tasks.setdefault(event["task"], TaskRecord(event["task"]))
    weights = event["text"] or "raw"
    results = task.evaluations.setdefault(weights, Evaluations(weights))
    for name, value in event["values"].items():
        results.values.setdefault(name, Series()).add(event["step"], value)


def _go_back(record: RunRecord, step: int) -> None:
    """Forget what a restart does again: the run goes on with `step`."""
    seconds = record.steps.get("seconds", Series())
    again = [value for at, value in zip(seconds.steps, seconds.values, strict=True) if at >= step]
    record.repeated_steps += len(again)
    record.repeated_seconds += sum(value for value in again if math.isfinite(value))
    columns = [record.steps, *(each for task in record.tasks.values() for each in (task.train, task.data))]
    columns += [*record.norms.values(), record.monitors]
    for series in (series for column in columns for series in column.values()):
        series.cut(step)
    # An evaluation bears the number of steps done before it, so one at `step` stays.
    for task in record.tasks.values():
        for results in task.evaluations.values():
            for series in results.values.values():
                series.cut(step + 1)
    record.main.cut(step + 1)
