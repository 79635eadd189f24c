"""One model over the ranks of a run, behind one small interface. Model code knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from allsight.engine.distributed import Ranks
from allsight.engine.parallel.experts import SplitExperts
from allsight.engine.parallel.same_passes import check_same_passes
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
        experts: Those of its experts that are split over ranks, if any.
    """

    def __init__(self, model: TaskModel, ranks: Ranks, experts: SplitExperts | None = None) -> None:
        self.bare, self.ranks, self.experts = model, ranks, experts

    @property
    def loss_factor(self) -> float:
        """PyTorch's reducers average over ranks; our losses are shares of the step's loss and must add up."""
        return 1.0

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds parts of parameters, so that all ranks must look at them together."""
        return self.experts is not None

    def begin(self, step: Step) -> None:
        """Before the first forward of a step.

        Raises:
            RanksDisagree: Ranks are about to run different passes, and would speak of different things.
        """
        if self.experts is not None:
            check_same_passes(step, self.ranks)

    def forward(self, batch: Batch, state: State) -> tuple[Outputs, State]:
        return self.bare(batch, state)

    @contextmanager
    def reducing(self, is_last: bool) -> Iterator[None]:
        """Around the forward and backward of one micro-batch of the step."""
        yield

    def finish(self) -> None:
        """After the last backward of the step."""
        if self.ranks.world > 1:
            split = frozenset() if self.experts is None else self.experts.names
            whole = [p for name, p in self.bare.named_parameters() if p.requires_grad and name not in split]
            sum_gradients(whole, self.ranks)
        if self.experts is not None:
            self.experts.finish(self.loss_factor)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the bare model may be called by each rank as often as it likes, without gradients."""
        with nullcontext() if self.experts is None else self.experts.whole():
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
