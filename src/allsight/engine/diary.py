"""What is written down about each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from allsight.data.corrupt import Ledger
from allsight.engine.distributed import Ranks
from allsight.engine.evaluator import TaskScore
from allsight.engine.events import EventLog
from allsight.engine.profiler.clock import Phase
from allsight.engine.step_report import Parts, StepReport, describe_fault
from allsight.models.base import TaskModel
from allsight.types import Batch, Costs, State, Step

if TYPE_CHECKING:
    from allsight.engine.probing import ProbeScore


@dataclass(frozen=True)
class StepResult:
    """What happened in one optimiser step, over all ranks.

    Args:
        number: From 0.
        loss: The number that was minimised.
        losses: Task -> loss name -> mean over the global batch, before weights.
        grad_norm: Before clipping.
        seconds: Of the whole step, waiting included.
        wait_s: Of it, waiting for data.
        samples: Task -> rows of its global batch.
        costs: Task -> what its data took to make, of this rank.
        skipped: The step was not finite and changed nothing.
        split: Phase of the step -> its seconds on this rank, see `StepClock`.
        peak_bytes: Most memory on this rank, see `PeakMemory`.
        mfu: Share of the devices' peak that the model's arithmetic made of the step, on the first rank.
        metrics: Results of an evaluation that followed the step.
    """

    number: int
    loss: float
    losses: Mapping[str, Mapping[str, float]]
    lr: float
    grad_norm: float
    seconds: float
    wait_s: float
    samples: Mapping[str, int]
    costs: Mapping[str, Costs]
    skipped: bool
    split: Mapping[Phase, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    mfu: float | None = None
    metrics: Mapping[str, float] | None = None

    @property
    def samples_per_s(self) -> float:
        """Over all ranks."""
        return sum(self.samples.values()) / max(self.seconds, 1e-9)


@dataclass
class Passes:
    """What the forward and backward passes of a step left on this rank, one entry for each micro-batch."""

    batches: list[Batch]
    states: list[State] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    parts: Parts = field(default_factory=dict)


class Diary:
    """Turns what happened in a step into events.

    Args:
        events: Where they go.
        ledger: Of unusable samples; those seen before are not told again.
    """

    def __init__(self, events: EventLog, ranks: Ranks, ledger: Ledger) -> None:
        self._events, self._ranks, self._ledger = events, ranks, ledger

    def step(self, result: StepResult, news: Sequence[str]) -> None:
        """Figures of a step; `news` of the processes that make its data."""
        values = {f"{name}_s": seconds for name, seconds in result.split.items() if name != "data"}
        for name in ("peak_bytes", "mfu"):
            value = getattr(result, name)
            if value is not None:
                values[name] = value
        self._events.write(
            "train",
            result.number,
            values={
                "loss": result.loss,
                "lr": result.lr,
                "grad_norm": result.grad_norm,
                "seconds": result.seconds,
                "wait_s": result.wait_s,
                "samples": sum(result.samples.values()),
                "samples_per_s": result.samples_per_s,
                **values,
            },
        )
        for task, losses in result.losses.items():
            values = {"loss": sum(losses.values()), **losses, "samples": result.samples[task]}
            self._events.write("train", result.number, task=task, values=values)
        for task, costs in result.costs.items():
            if costs.samples:
                self._events.write("data", result.number, task=task, values=asdict(costs))
        for text in news:
            self._events.write("alarm", result.number, text=text)

    def evaluated(self, number: int, scores: Mapping[str, TaskScore], *, text: str) -> dict[str, float]:
        """Scores of tasks; returns `{"task/metric": value}`.

        Args:
            text: Which weights were judged.
        """
        metrics: dict[str, float] = {}
        for task, score in scores.items():
            metrics |= {f"{task}/{metric}": value for metric, value in score.values.items()}
            extra = {"seconds": score.seconds, "samples": score.samples, "corrupt": len(score.corrupt)}
            self._events.write("eval", number, task=task, values={**score.values, **extra}, text=text)
            if score.problem:
                problem = f"pictures for the report not kept: {score.problem}"
                self._events.write("alarm", number, task=task, text=problem)
            for bad in score.corrupt:
                left_out = f"{bad.id}: {bad.reason}; left out of the score"
                self._events.write("data", number, task=task, text=left_out)
        return metrics

    def norms(self, number: int, values: Mapping[str, float]) -> None:
        """Norms of parts, where somebody looked."""
        if values and self._ranks.is_first:
            self._events.write("norms", number, values=values)

    def probed(self, number: int, score: ProbeScore, text: str) -> None:
        """What a probe of the features found."""
        self._events.write("probe", number, task=score.task, values=score.noted(), text=text)

    def monitors(self, model: TaskModel, number: int) -> None:
        """What the model says about its training, and what it warns of."""
        own = model.monitors(number)
        if own is None:
            return
        found: dict[str, list[float]] = {}
        for theirs in self._ranks.gather(dict(own)):
            for name, value in theirs.items():
                found.setdefault(name, []).append(value)
        values = {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
        self._events.write("monitor", number, values=values)
        for text in model.alarms(number, values):
            self._events.write("alarm", number, text=text)

    def skipped(self, step: Step, passes: Passes, report: StepReport, skipped: int) -> None:
        """Say which samples were in the micro-batches whose loss was not finite."""
        each = zip(passes.batches, passes.losses, strict=True)
        own = [batch.ids for batch, loss in each if not bool(loss.isfinite())]
        ids = [name for theirs in self._ranks.gather(own) for names in theirs for name in names]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        samples = f" (samples {shown})" if ids else ""
        self._events.write(
            "alarm",
            step.number,
            values={"skipped": skipped},
            text=f"step {step.number}: {describe_fault(report)}{samples}; step skipped, nothing was changed",
        )

    def corrupt(self, step: Step) -> None:
        """Samples of a step that could not be used, each when it is met for the first time."""
        own = [bad for name in step.tasks for batch in step.batches[name] for bad in batch.corrupt]
        for bad in (bad for theirs in self._ranks.gather(own) for bad in theirs):
            is_new = self._ledger.add(bad)
            if is_new:
                self._events.write(
                    "data",
                    step.number,
                    task=bad.task,
                    values={"corrupt": self._ledger.count(bad.task)},
                    text=f"{bad.id}: {bad.reason}; replaced by {bad.replacement}",
                )
