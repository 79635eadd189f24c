"""Where the time of each step goes, for the price of reading a clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch.autograd.profiler import record_function

Phase = Literal["data", "forward", "backward", "exchange", "optimiser"]
RANGE = "allsight: "
"""What the names of our ranges in a trace begin with."""


class StepClock:
    """Adds up the seconds of each phase of a step.

    `exchange` is what ranks say to each other outside the passes, waiting for the slowest included; what DDP
    and FSDP send during a pass belongs to that pass, and only a profile tells it apart. On a GPU phases are
    timed by its own clock without waiting for it: what has not ended when `take` is called, the optimiser's
    as a rule, counts for the next step.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[Phase, float] = {}
        self._pending: list[tuple[Phase, torch.cuda.Event, torch.cuda.Event]] = []
        self.stage: Phase = "data"
        """The phase at hand; after an error, the one it happened in."""

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Around one stretch of a phase; a profiler that runs sees it as a range."""
        self.stage = name
        watched = torch.autograd._profiler_enabled()
        with record_function(RANGE + name) if watched else nullcontext():
            if self._on_gpu and name != "data":
                begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begun.record()
                yield
                ended.record()
                self._pending.append((name, begun, ended))
            else:
                begun_s = time.perf_counter()
                yield
                self._add(name, time.perf_counter() - begun_s)

    def take(self) -> dict[Phase, float]:
        """Seconds of each phase since the last call."""
        waiting = []
        for name, begun, ended in self._pending:
            if ended.query():
                self._add(name, begun.elapsed_time(ended) / 1e3)
            else:
                waiting.append((name, begun, ended))
        self._pending = waiting
        taken, self._seconds = self._seconds, {}
        return taken

    def _add(self, name: Phase, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class PeakMemory:
    """The most memory of a step: on a GPU of this step, on a CPU of this process so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def take(self) -> int | None:
        """Bytes since the last call; None where nobody counts them."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return peak
        return resident_peak()


def resident_peak() -> int | None:
    """Most bytes that this process held at once, as the operating system saw it."""
    try:
        import resource
    except ImportError:
        return None
    # Kilobytes, but bytes on macOS.
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
