"""What all ranks need to know of one step, in one small all-reduce and one wait for the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from allsight.engine.distributed import Ranks
from allsight.types import Step

Parts = dict[tuple[str, str], Tensor]
"""(task, loss name) -> this rank's share of the mean over the global batch."""


@dataclass(frozen=True)
class StepReport:
    """Global figures of a step, the same on all ranks."""

    losses: Mapping[str, Mapping[str, float]]
    loss: float
    grad_norm: float
    is_finite: bool
    num_corrupt: int
    stops: bool = False
    """Whether a rank was asked to stop."""

    @property
    def losses_are_finite(self) -> bool:
        """Whether at most the gradient is at fault."""
        return all(math.isfinite(value) for named in self.losses.values() for value in named.values())


class StepReporter:
    """Adds up the figures of a step over ranks.

    The all-reduce needs one layout on all ranks, and a rank without rows of a task does not know its losses;
    so loss names are exchanged once, when a task is drawn for the first time.
    """

    def __init__(self, loss_weights: Mapping[str, float], ranks: Ranks) -> None:
        self._loss_weights, self._ranks = loss_weights, ranks
        self._names: dict[str, tuple[str, ...]] = {}

    def report(self, step: Step, parts: Parts, norm: Tensor, *, stops: bool = False) -> StepReport:
        self._learn_names(step, parts)
        device = norm.device
        keys = [(task, name) for task in step.tasks for name in self._names[task]]
        zero = torch.zeros((), dtype=torch.float64, device=device)
        values = [parts[key].detach().to(torch.float64) if key in parts else zero for key in keys]
        finite = torch.stack([*values, norm.to(torch.float64)]).isfinite().all()
        corrupt = sum(len(batch.corrupt) for name in step.tasks for batch in step.batches[name])
        sums = torch.stack([*values, (~finite).to(torch.float64), zero + corrupt, zero + stops])
        *reduced, num_faults, num_corrupt, num_stops = self._ranks.sum(sums).tolist()
        losses: dict[str, dict[str, float]] = {task: {} for task in step.tasks}
        total = 0.0
        for (task, name), value in zip(keys, reduced, strict=True):
            losses[task][name] = value
            total += value * step.weights[task] * self._loss_weights[task]
        return StepReport(losses, total, float(norm), num_faults == 0, int(num_corrupt), num_stops > 0)

    def _learn_names(self, step: Step, parts: Parts) -> None:
        new = [task for task in step.tasks if task not in self._names]
        if not new:
            return
        own = {task: tuple(name for of, name in parts if of == task) for task in new}
        for theirs in self._ranks.gather(own):
            for task, names in theirs.items():
                if names:
                    self._names[task] = names


def describe_fault(report: StepReport) -> str:
    """Which losses were not finite, or that only the gradient was."""
    bad = [
        f"'{task}' ({name})"
        for task, losses in report.losses.items()
        for name, value in losses.items()
        if not math.isfinite(value)
    ]
    return f"non-finite loss in task {', '.join(bad)}" if bad else "non-finite gradient"
