"""Progress of a run: a live display on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from io import TextIOBase
from types import TracebackType
from typing import IO, Protocol, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from allsight.view.events import Event, numbers_of
from allsight.view.figures import clock, count, short
from allsight.view.pace import Pace, metrics_of

Stream = TextIO | TextIOBase

_MOST_DATA_LINES = 5
_REDRAW_S = 0.25


class Progress:
    """Listens to a trainer and shows how its run goes. Errors in showing never reach the run.

    ```python
    with Progress(steps=trainer.steps, tasks=list(trainer.tasks)) as progress:
        trainer.listeners.append(progress)
        trainer.fit()
    ```

    Args:
        steps: How many the run has.
        tasks: Order in which losses are shown.
        pace: Goes on from here, for a run that has begun already; says `steps` and `tasks` itself.
        stream: Where to write; None takes standard error, so that results can be piped. What is not a
            terminal gets plain lines.
        every_s: Seconds between plain lines; long runs get them at every hundredth of their time so far.
        silent: Show nothing.

    Attributes:
        is_read: Nobody has closed the stream from its other end.
    """

    def __init__(
        self,
        *,
        steps: int = 0,
        tasks: Sequence[str] = (),
        pace: Pace | None = None,
        stream: Stream | None = None,
        every_s: float = 10.0,
        silent: bool = False,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._pace = Pace(steps, tuple(tasks)) if pace is None else pace
        self._every_s = every_s
        self._silent = silent
        self._view: _View | None = None
        self.is_read = True

    def __enter__(self) -> Progress:
        self._guarded(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        self.on_event(event)

    def on_event(self, event: Event) -> None:
        """Take one event, as `trainer.listeners` get it."""
        self._guarded(lambda: self._take(event))

    def say(self, text: str) -> None:
        """Show a line of one's own."""
        self._guarded(lambda: self._view.write(text) if self._view is not None else None)

    def close(self) -> None:
        """Leave the terminal as it was."""
        view, self._view = self._view, None
        if view is not None:
            self._guarded(view.close)

    def _open(self) -> None:
        if self._silent or self._view is not None:
            return
        if self._stream.isatty():
            self._view = _Live(self._pace, self._stream)
        else:
            self._view = _Lines(self._pace, self._stream, self._every_s)

    def _take(self, event: Event) -> None:
        if self._silent:
            return
        if self._view is None:
            self._open()
        if self._view is not None:
            self._view.show(event)

    def _guarded(self, action: _Action) -> None:
        """A full disk, a closed pipe or a strange event must not end hours of training."""
        try:
            action()
        except BrokenPipeError:
            self._silent, self.is_read = True, False
        except Exception as error:
            if not self._silent:
                self._silent = True
                self._tell(
                    f"progress is not shown any more ({type(error).__name__}: {error}); the run goes on"
                )

    def _tell(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
        except (OSError, ValueError):
            # The stream itself is gone; there is nobody left to tell.
            self._silent = True


class _Action(Protocol):
    def __call__(self) -> None: ...


class _View(Protocol):
    def show(self, event: Event) -> None: ...

    def write(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Plain lines: the first step, then every few seconds, evaluations, alarms and the end."""

    def __init__(self, pace: Pace, stream: Stream, every_s: float) -> None:
        self._pace, self._stream, self._every_s = pace, stream, every_s
        self._begun_s = self._said_s = -math.inf
        self._step_due: tuple[int, float] | None = None
        self._said_step = -1

    def show(self, event: Event) -> None:
        # The losses of a step follow its own event, so its line waits for whatever comes after them.
        if self._step_due is not None and (event["kind"] != "train" or event["step"] != self._step_due[0]):
            self._say_step()
        self._pace.take(event)
        if event["kind"] == "train":
            if event["task"] is None and self._is_due(event["step"], event["time"]):
                self._step_due = (event["step"], event["time"])
            return
        text = event_line(event, self._pace)
        if text:
            self.write(text)

    def close(self) -> None:
        if self._step_due is not None:
            self._say_step()

    def _is_due(self, step: int, now_s: float) -> bool:
        if self._begun_s == -math.inf:
            self._begun_s = now_s
        wait = max(self._every_s, (now_s - self._begun_s) / 100)
        return step + 1 >= self._pace.steps or now_s - self._said_s >= wait

    def _say_step(self) -> None:
        assert self._step_due is not None
        self._said_step, self._said_s = self._step_due
        self._step_due = None
        self.write(step_line(self._pace, self._said_step + 1))

    def write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def step_line(pace: Pace, done: int, *, time_left: bool = True) -> str:
    """`step 120/1000  tiny20 2.103  camvid 0.911  lr 1.9e-03  812 img/s  left 3m12s`"""
    losses = [f"{name} {value:.3f}" for name, value in pace.shown_losses()]
    speed, left = pace.images_per_s, pace.left_s
    words = [f"step {done}/{pace.steps}", *losses, f"lr {pace.lr:.1e}"]
    words += [f"{speed:.0f} img/s" if speed >= 9.95 else f"{speed:.1f} img/s"] if math.isfinite(speed) else []
    words += [f"left {clock(left)}"] if time_left and math.isfinite(left) and done < pace.steps else []
    return "  ".join(words)


def event_line(event: Event, pace: Pace) -> str:
    """What is said about an event that is no training step; empty if nothing."""
    kind, task, text = event["kind"], event["task"], event["text"]
    values = numbers_of(event["values"])
    if kind == "eval" and task is not None:
        words = [f"{name} {short(value)}" for name, value in metrics_of(values).items()]
        words += [f"loss {short(values['loss'])}"] if "loss" in values else []
        return "  ".join([f"eval at {event['step']}", task, *words, f"({text})" if text else ""]).rstrip()
    if kind == "data" and task is not None and "samples" not in values:
        number = pace.corrupt.get(task, 0)
        if number < _MOST_DATA_LINES:
            return f"corrupt sample in {task}: {text}"
        # 5, 10, 20, 40, ...: a broken disk would fill the screen.
        is_round = number % _MOST_DATA_LINES == 0 and (number // _MOST_DATA_LINES).bit_count() == 1
        return f"corrupt samples in {task}: {count(number)} so far, the last is {text}" if is_round else ""
    if kind in ("alarm", "restart", "note"):
        return f"{kind}: {text}"
    if kind == "system" and text == "finished":
        return f"finished after {clock(values['seconds'])}" if "seconds" in values else "finished"
    return ""


class _Live:
    """A few lines at the foot of the terminal that are drawn anew; what happened once scrolls by above."""

    def __init__(self, pace: Pace, stream: Stream) -> None:
        self._pace = pace
        self._alarm = ""
        self._console = Console(file=cast(IO[str], stream))
        # No thread of its own: the loader forks, and a fork must not copy a lock that a thread holds.
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._drawn_s = -math.inf
        self._live.start()

    def show(self, event: Event) -> None:
        self._pace.take(event)
        text = event_line(event, self._pace)
        now = time.monotonic()
        if text or now - self._drawn_s >= _REDRAW_S:
            self._drawn_s = now
            self._live.refresh()
        if not text:
            return
        if event["kind"] == "alarm":
            self._alarm = text
        self.write(text, "red" if event["kind"] == "alarm" else None)

    def write(self, text: str, style: str | None = None) -> None:
        # Plain: names in brackets are not to be read as styles.
        self._console.print(text, markup=False, highlight=False, style=style)

    def close(self) -> None:
        self._live.refresh()
        self._live.stop()

    def _render(self) -> Group:
        pace = self._pace
        top = Table.grid(padding=(0, 2))
        share = pace.done / pace.steps if pace.steps else 0.0
        speed = f"{pace.images_per_s:.0f} img/s" if math.isfinite(pace.images_per_s) else ""
        left = f"left {clock(pace.left_s)}" if math.isfinite(pace.left_s) and pace.done < pace.steps else ""
        rate = f"lr {pace.lr:.1e}" if math.isfinite(pace.lr) else ""
        bar = ProgressBar(total=max(pace.steps, 1), completed=pace.done, width=24)
        top.add_row(f"step {pace.done}/{pace.steps}", bar, f"{100 * share:.0f} %", speed, rate, left)
        tasks = Table.grid(padding=(0, 2))
        losses = dict(pace.shown_losses())
        for name in dict.fromkeys([*pace.tasks, *losses, *pace.metrics]):
            loss = f"loss {losses[name]:.3f}" if name in losses else ""
            found = "  ".join(f"{key} {short(value)}" for key, value in pace.metrics.get(name, {}).items())
            tasks.add_row(Text(name), loss, Text(found, style="cyan"))
        parts: list[RenderableType] = [top, tasks]
        if self._alarm:
            steps = "step" if pace.skipped == 1 else "steps"
            skipped = f"{pace.skipped} {steps} skipped; last " if pace.skipped else ""
            parts.append(Text(skipped + self._alarm, style="red", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)
