"""What a run in progress amounts to: smoothed losses, speed, time left."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from allsight.view.events import Event, numbers_of

_ABOUT_EVALUATION = ("loss", "seconds", "samples", "corrupt")
_KEEP = 0.9
_RECENT = 50


@dataclass
class Mean:
    """A running mean that forgets, of the finite values it was given."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.total = _KEEP * self.total + (1 - _KEEP) * value
            self.weight = _KEEP * self.weight + (1 - _KEEP)

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else math.nan


@dataclass
class Pace:
    """Takes events, knows how the run stands.

    Args:
        steps: How many the run has.
        tasks: Order in which tasks are shown; others follow as they come.
    """

    steps: int
    tasks: Sequence[str] = ()
    done: int = 0
    lr: float = math.nan
    skipped: int = 0
    corrupt: dict[str, int] = field(default_factory=dict)
    losses: dict[str, Mean] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> metric -> value of the last evaluation, without loss, time and counts."""
    is_finished: bool = False
    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _first: tuple[int, float] | None = None
    _last_s: float = math.nan

    def take(self, event: Event) -> None:
        """Note one event as the run's listeners get it."""
        kind, task, values = event["kind"], event["task"], numbers_of(event["values"])
        self._last_s = event["time"]
        if kind == "train" and task is None:
            self.done = event["step"] + 1
            self.lr = values.get("lr", math.nan)
            self._recent.append((values.get("samples", math.nan), values.get("seconds", math.nan)))
            if self._first is None:
                self._first = (self.done, event["time"])
        elif kind == "train":
            self.losses.setdefault(task, Mean()).add(values.get("loss", math.nan))
        elif kind == "eval" and task is not None:
            self.metrics[task] = metrics_of(values)
        elif kind == "data" and task is not None and "samples" not in values:
            self.corrupt[task] = self.corrupt.get(task, 0) + 1
        elif kind == "alarm" and "skipped" in values:
            self.skipped = int(values["skipped"])
        elif kind == "restart":
            self.done, self._first = event["step"], None
        elif kind == "system":
            self.steps = int(values.get("steps", self.steps))
            self.is_finished = event["text"] == "finished"

    def shown_losses(self) -> list[tuple[str, float]]:
        """(task, smoothed loss), the tasks in their order."""
        names = [*self.tasks, *(name for name in self.losses if name not in self.tasks)]
        return [(name, self.losses[name].value) for name in names if name in self.losses]

    @property
    def images_per_s(self) -> float:
        """Over the last 50 steps; nan before the first."""
        pairs = [(size, time) for size, time in self._recent if math.isfinite(size) and math.isfinite(time)]
        seconds = sum(time for _, time in pairs)
        return sum(size for size, _ in pairs) / seconds if seconds > 0 else math.nan

    @property
    def left_s(self) -> float:
        """Seconds left at the pace since this process began, evaluations included; nan while unknown."""
        if self._first is None:
            return math.nan
        step, time = self._first
        if self.done <= step:
            return math.nan
        return (self._last_s - time) / (self.done - step) * max(self.steps - self.done, 0)


def metrics_of(values: dict[str, float]) -> dict[str, float]:
    """The metrics among the values of an evaluation."""
    return {name: value for name, value in values.items() if name not in _ABOUT_EVALUATION}
