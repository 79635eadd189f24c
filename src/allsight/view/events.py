"""Reading `events.jsonl` as a run left it, which may be in the middle of a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from allsight.config import ConfigError

Event = dict[str, Any]

_WORDS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def _ignore(text: str) -> None:
    pass


def read_events(run: Path, *, tell: Callable[[str], None] = _ignore) -> Iterator[Event]:
    """The events of a run in the order they were written; `values` are numbers, also nan and inf.

    A line that a kill tore is left out: the last one of a file, or one in the middle where the run went on.

    Args:
        run: Run folder, or an `events.jsonl` or `events/rank-N.jsonl` file.
        tell: Hears of each line that was left out, and why.
    Raises:
        ConfigError: There is no such file, or it cannot be read.
    """
    file = run / "events.jsonl" if run.is_dir() else run
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file of events; give a run folder such as runs/NAME")
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                if not line.strip():
                    continue
                event = parse_event(line)
                if event is not None:
                    yield event
                elif line.endswith(b"\n"):
                    tell(f"{file.name}: line {number} is not an event (torn by a kill?); left out")
                else:
                    tell(f"{file.name}: the last line (line {number}) is torn, as a kill leaves it; left out")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error


def parse_event(line: bytes | str) -> Event | None:
    """One line as an event with all its fields; None if it is not one."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    step, time, values = event.get("step", 0), event.get("time", 0.0), event.get("values")
    if not isinstance(step, int) or not isinstance(time, int | float):
        return None
    task, text = event.get("task"), event.get("text")
    return {
        "time": float(time),
        "step": step,
        "rank": event.get("rank", 0),
        "kind": event["kind"],
        "task": None if task is None else str(task),
        "values": numbers_of(values) if isinstance(values, dict) else {},
        "text": "" if text is None else str(text),
    }


def numbers_of(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among an event's values; the strings nan, inf and -inf count as such."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, int | float):
            found[name] = float(value)
        elif isinstance(value, str) and value in _WORDS:
            found[name] = _WORDS[value]
    return found
