"""Watching a run from another terminal: what it has done, then what it does."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from allsight.view.events import Event, parse_event
from allsight.view.figures import clock, count, short
from allsight.view.pace import Pace
from allsight.view.progress import Progress, Stream, event_line, step_line
from allsight.view.record import RunRecord, Status, open_record

_BEGINNINGS = {"environment.json", "classes.json", "tokenizer.json"}
"""What a run folder holds before its `resolved.yaml` makes it one."""

_SETTLED_S = 10.0
"""An alarm may be followed by training that goes on; only after so long is it taken for the end."""


class Follower:
    """The events of a file, as they are written; a line that is not yet whole waits for its rest."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._place = 0

    def new(self) -> Iterator[Event]:
        """The events since the last call; none while the file is not there."""
        try:
            if self._file.stat().st_size < self._place:
                self._place = 0
            with self._file.open("rb") as opened:
                opened.seek(self._place)
                for line in opened:
                    if not line.endswith(b"\n"):
                        return
                    self._place += len(line)
                    event = parse_event(line)
                    if event is not None:
                        yield event
        except FileNotFoundError:
            return


def watch_run(run: Path, *, once: bool = False, stream: Stream | None = None, poll_s: float = 0.5) -> int:
    """Show how a run goes until it ends or the user has seen enough (Ctrl-C); the exit status.

    A run that is not there yet is waited for. The run is only read, so watching never disturbs it.

    Args:
        run: Run folder.
        once: Show how it stands and return.
        stream: Where to write; None takes standard output.
        poll_s: Seconds between looks.
    Returns:
        0 if it finished or may still be running, 1 if it failed, or (with `once`) stopped without an end.
    Raises:
        ConfigError: The folder is no run folder, or was written by a newer allsight.
        BrokenPipeError: The stream was closed from its other end.
    """
    try:
        return _watch(run, once, sys.stdout if stream is None else stream, poll_s)
    except KeyboardInterrupt:
        return 0


def _watch(run: Path, once: bool, stream: Stream, poll_s: float) -> int:
    if not _has_begun(run):
        _say(stream, f"{run}: has not begun" + ("" if once else "; waiting for it (Ctrl-C ends)"))
        if once:
            return 0
        while not _has_begun(run):
            time.sleep(poll_s)
    record, follower = open_record(run), Follower(run / "events.jsonl")
    pace = Pace(0, tuple(record.tasks))
    for event in follower.new():
        record.take(event)
        pace.take(event)
    status = record.status()[0]
    has_failed = status == "failed" and record.now_s - record.last_s > _SETTLED_S
    for line in standing(record, pace):
        _say(stream, line)
    if once or status == "finished" or has_failed:
        return int(status == "failed" or (once and status == "stopped" and record.last is not None))
    with Progress(pace=pace, stream=stream) as progress:
        return _follow(record, follower, progress, poll_s)


def _follow(record: RunRecord, follower: Follower, progress: Progress, poll_s: float) -> int:
    """Show events until the run ends."""
    is_silent = record.status()[0] == "stopped"
    while True:
        for event in follower.new():
            is_silent = False
            record.take(event)
            progress.on_event(event)
        if not progress.is_read:
            raise BrokenPipeError(errno.EPIPE, "nobody reads what is shown")
        record.now_s = time.time()
        status = record.status()[0]
        if status == "finished":
            return 0
        if status == "failed" and record.now_s - record.last_s > _SETTLED_S:
            return 1
        if status == "stopped" and record.last is not None and not is_silent:
            is_silent = True
            progress.say(
                f"no sign of life for {clock(record.now_s - record.last_s)}; still watching (Ctrl-C ends)"
            )
        time.sleep(poll_s)


def standing(record: RunRecord, pace: Pace) -> list[str]:
    """How a run stands, in lines: status, step, last evaluations, what was wrong."""
    status, reason = record.status()
    lines = [f"{record.folder}: {_said(record, status, reason)}"]
    if pace.done:
        lines.append(step_line(pace, pace.done, time_left=status == "running"))
    for task in record.tasks.values():
        judged = task.judged
        for_step: dict[int, list[str]] = {}
        for name, series in judged.metrics().items() if judged is not None else ():
            if series.steps:
                for_step.setdefault(series.steps[-1], []).append(f"{name} {short(series.values[-1])}")
        if judged is not None and for_step:
            step = max(for_step)
            lines.append("  ".join([f"eval at {step}", task.name, *for_step[step], f"({judged.weights})"]))
    lines += [f"corrupt samples in {task}: {count(number)}" for task, number in pace.corrupt.items()]
    alarms = [event_line(event, pace) for event in record.of_kind("alarm")]
    if alarms and not (status == "failed" and len(alarms) == 1):
        more = f" ({len(alarms)} in all)" if len(alarms) > 1 else ""
        lines.append(f"last {alarms[-1]}{more}")
    return lines


def _said(record: RunRecord, status: Status, reason: str) -> str:
    if record.last is None:
        return "has begun, no events yet"
    ago = f" {clock(max(record.now_s - record.last_s, 0.0))} ago"
    match status:
        case "finished":
            return f"finished{ago}"
        case "running":
            return "running"
        case "failed":
            return f"failed{ago}: {reason}"
        case "stopped":
            return f"stopped: last sign of life{ago}, and no end was noted"


def _has_begun(run: Path) -> bool:
    """Whether the folder is one of a run, or of something else, which `open_record` will refuse."""
    if not run.is_dir():
        return run.exists()
    names = {entry.name for entry in run.iterdir() if not entry.name.startswith(".")}
    return bool(names - _BEGINNINGS)


def _say(stream: Stream, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()
