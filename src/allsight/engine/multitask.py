"""How the losses of a step's tasks become one number, whatever way the step was split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from allsight.engine.distributed import Ranks
from allsight.tasks.base import Task
from allsight.types import Batch, Step


class LossScales:
    """What each mean loss of each micro-batch counts in its step.

    A loss that is a mean over samples counts rows / global rows; one that the task names in `counted` counts
    its own items / global items. On top come the step's weight of the task (lanes that drew it) and its
    `loss_weight`.
    The sum over micro-batches and ranks is then the mean over the global batch, however it was split.
    """

    def __init__(self, tasks: Mapping[str, Task], ranks: Ranks) -> None:
        self._tasks, self._ranks = tasks, ranks
        # The all-reduce of counts needs one layout on all ranks, also on ranks that have no row of a task.
        self._slots = [(name, loss) for name, task in tasks.items() for loss in task.counted]

    def global_counts(self, step: Step) -> dict[tuple[str, str], float]:
        """(task, counted loss) -> items in the global batch. Every rank calls this before its forwards."""
        if not self._slots:
            return {}
        sums = dict.fromkeys(self._slots, 0.0)
        for name in step.tasks:
            for batch in step.batches[name]:
                for loss, count in _counts(self._tasks[name], batch).items():
                    sums[name, loss] += count
        totals = self._ranks.sum(torch.tensor(list(sums.values()), dtype=torch.float64))
        return dict(zip(self._slots, totals.tolist(), strict=True))

    def shares(
        self, step: Step, batch: Batch, names: Sequence[str], totals: Mapping[tuple[str, str], float]
    ) -> dict[str, float]:
        """Loss name -> share of this micro-batch's mean in the task's mean over the global batch."""
        task = self._tasks[batch.task]
        counts = _counts(task, batch) if task.counted else {}
        shares = {}
        for name in names:
            if name in task.counted:
                total = totals[batch.task, name]
                shares[name] = counts[name] / total if total > 0 else 0.0
            else:
                shares[name] = len(batch) / step.sizes[batch.task]
        return shares

    def weight(self, step: Step, task: str) -> float:
        """Factor on all losses of a task in this step."""
        return step.weights[task] * self._tasks[task].config.loss_weight


def _counts(task: Task, batch: Batch) -> dict[str, float]:
    counts = task.counts(batch)
    missing = [name for name in task.counted if name not in counts]
    if missing:
        raise ValueError(
            f"task {task.name}: counts() must say over how many items {missing} are means; it gave {counts}"
        )
    return {name: float(counts[name]) for name in task.counted}


def check_losses(losses: Mapping[str, Tensor], task: Task) -> Mapping[str, Tensor]:
    """The losses, if they are what the contract says: named scalars."""
    for name, loss in losses.items():
        if loss.ndim != 0:
            raise ValueError(
                f"task {task.name}: loss '{name}' must be a mean (a scalar), got shape {tuple(loss.shape)}"
            )
    if not losses:
        raise ValueError(f"task {task.name}: loss() returned no losses")
    return losses
