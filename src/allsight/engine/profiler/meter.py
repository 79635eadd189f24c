"""What the loop measures of itself: time of phases, peak memory, utilisation, and the steps of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks
from allsight.engine.events import EventLog
from allsight.engine.profiler import Profiler
from allsight.engine.profiler.clock import PeakMemory, Phase, StepClock
from allsight.engine.profiler.utilisation import Utilisation
from allsight.tasks.base import Task
from allsight.types import Step

if TYPE_CHECKING:
    from allsight.engine.diary import StepResult


class StepMeter:
    """Stands beside the loop; what it finds goes into the result of each step.

    Args:
        folder: Of the run; None profiles nothing and knows no utilisation.
    """

    def __init__(
        self,
        config: RunConfig,
        tasks: Mapping[str, Task],
        folder: Path | None,
        ranks: Ranks,
        events: EventLog,
    ) -> None:
        self._clock, self._memory, self._events = StepClock(ranks.device), PeakMemory(ranks.device), events
        self._profiler = Profiler(config.profile, folder, ranks, events)
        self._utilisation: Utilisation | None = None
        if folder is not None and ranks.is_first:
            self._utilisation = Utilisation(config, tasks, ranks)

    @property
    def stage(self) -> Phase:
        """The phase at hand; after an error, the one it happened in."""
        return self._clock.stage

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Around one stretch of a phase."""
        return self._clock.phase(name)

    def before(self, number: int) -> None:
        """Before the data of a step are fetched."""
        self._profiler.before(number)

    def after(self, result: StepResult, step: Step) -> StepResult:
        """The result with what was measured, before the step is judged or saved; all ranks call this."""
        self._profiler.after(step.number, samples=sum(result.samples.values()), wait_s=step.wait_s)
        mfu = self._mfu(result, step)
        return replace(result, split=self._clock.take(), peak_bytes=self._memory.take(), mfu=mfu)

    def close(self) -> None:
        """At the end of the loop: a profile that goes on is given up."""
        self._profiler.close()

    def _mfu(self, result: StepResult, step: Step) -> float | None:
        if self._utilisation is None:
            return None
        mfu = self._utilisation.of(step, result.seconds)
        if self._utilisation.problem:
            self._events.write("note", step.number, text=f"no MFU: {self._utilisation.problem}")
            self._utilisation = None
        return mfu
