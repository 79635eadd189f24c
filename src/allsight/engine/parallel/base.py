"""One model over the ranks of a run, behind one small interface. Model code knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from allsight.engine.distributed import Ranks
from allsight.models.base import TaskModel
from allsight.types import Batch, Outputs, State, Step


class Parallel:
    """Runs the model and sees to it that every rank ends a step with the gradient of the whole step.

    This class serves one rank, and several ranks that each hold everything and sum their gradients by one
    flat all-reduce at the end of the step: for `mixed_lanes`, where ranks run different numbers of passes,
    which PyTorch's reducers cannot follow, and where a pass may have to be run again. Subclasses reduce while
    the backward pass runs.

    Args:
        model: The bare model, on its device, with the same weights on all ranks.
    """

    def __init__(self, model: TaskModel, ranks: Ranks) -> None:
        self.bare, self.ranks = model, ranks

    @property
    def loss_factor(self) -> float:
        """PyTorch's reducers average over ranks; our losses are shares of the step's loss and must add up."""
        return 1.0

    def begin(self, step: Step) -> None:
        """Before the first forward of a step."""

    def forward(self, batch: Batch, state: State) -> tuple[Outputs, State]:
        return self.bare(batch, state)

    @contextmanager
    def reducing(self, is_last: bool) -> Iterator[None]:
        """Around the forward and backward of one micro-batch of the step."""
        yield

    def finish(self) -> None:
        """After the last backward of the step."""
        if self.ranks.world > 1:
            sum_gradients([p for p in self.bare.parameters() if p.requires_grad], self.ranks)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the bare model may be called by each rank as often as it likes, without gradients."""
        yield


def sum_gradients(parameters: list[nn.Parameter], ranks: Ranks) -> None:
    """Sum gradients over ranks in one message; what no rank used keeps None."""
    if not parameters:
        return
    device = parameters[0].device
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=device)
    ranks.sum(used)
    touched = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
    if not touched:
        return
    gradients: list[Tensor] = [torch.zeros_like(p) if p.grad is None else p.grad for p in touched]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    ranks.sum(flat)
    start = 0
    for parameter in touched:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
