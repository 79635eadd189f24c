"""The diary of a run: one JSON object a line, in `events.jsonl` and `events/rank-N.jsonl`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

Kind = Literal[
    "train",
    "eval",
    "data",
    "system",
    "alarm",
    "restart",
    "checkpoint",
    "note",
    "norms",
    "monitor",
    "probe",
    "interference",
    "ask",
]
Event = dict[str, Any]
Listener = Callable[[Event], None]


class EventLog:
    """Writes events and tells listeners. Never stops a run: what cannot be written is counted and said once.

    Args:
        folder: Run folder; None writes nothing.
        rank: Of this process; rank 0 also writes the run's own view and has the listeners.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self.rank = rank
        self.listeners: list[Listener] = []
        self.lost = 0
        self._files: list[IO[str]] = []
        if folder is not None:
            (folder / "events").mkdir(parents=True, exist_ok=True)
            paths = [folder / "events" / f"rank-{rank}.jsonl"]
            if rank == 0:
                paths.append(folder / "events.jsonl")
            self._files = [_open_whole(path) for path in paths]

    def write(
        self,
        kind: Kind,
        step: int,
        *,
        task: str | None = None,
        values: Mapping[str, float | int] | None = None,
        text: str = "",
    ) -> None:
        """Note one event."""
        event: Event = {
            "time": round(time.time(), 3),
            "step": step,
            "rank": self.rank,
            "kind": kind,
            "task": task,
            "values": {name: _plain(value) for name, value in (values or {}).items()},
            "text": text,
        }
        line = json.dumps(event, ensure_ascii=False) + "\n"
        for file in self._files:
            try:
                file.write(line)
                file.flush()
            except OSError as error:
                self.lost += 1
                if self.lost == 1:
                    self._tell({**event, "kind": "alarm", "text": f"events cannot be written: {error}"})
        self._tell(event)

    def close(self) -> None:
        for file in self._files:
            try:
                file.close()
            except OSError:
                self.lost += 1
        self._files = []

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)


def _open_whole(path: Path) -> IO[str]:
    """Open for appending; a line torn by a kill is ended first, so that the next one stands alone."""
    torn = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, 2)
            torn = file.read(1) != b"\n"
    opened = path.open("a", encoding="utf-8")
    if torn:
        opened.write("\n")
    return opened


def _plain(value: float | int) -> float | int | str:
    """JSON has no NaN: non-finite numbers become the strings nan, inf, -inf."""
    if isinstance(value, bool | int):
        return int(value)
    value = float(value)
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.7g}")
