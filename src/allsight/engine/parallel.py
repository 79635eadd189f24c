"""One model over the ranks of a run, behind one small interface. Model code knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from allsight.config import ConfigError
from allsight.engine.distributed import Ranks
from allsight.models.base import TaskModel
from allsight.types import Batch, Outputs, State

# PyTorch 2.13 renamed the option and warns of the old name.
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


class Parallel:
    """Runs the model and sees to it that every rank ends a step with the gradient of the whole step.

    Gradients are reduced once a step, on its last backward. With `mixed_lanes` ranks run different numbers of
    passes, which PyTorch's reducers cannot follow; there one flat all-reduce at the end of the step does it.

    Args:
        model: The bare model, on its device, with the same weights on all ranks.
        strategy: `parallel.strategy`.
        layout: `sampling.layout`.
    Raises:
        ConfigError: Several ranks and a strategy for one.
    """

    def __init__(self, model: TaskModel, *, strategy: str, layout: str, ranks: Ranks) -> None:
        if ranks.world > 1 and strategy == "single":
            raise ConfigError("config.parallel.strategy: 'single' uses one process; set ddp")
        self.bare, self.ranks = model, ranks
        self._flat = ranks.world > 1 and layout == "mixed_lanes"
        self._module: nn.Module = model
        if ranks.world > 1 and not self._flat:
            # Each step uses other parameters. Buffers are shared when weights are used, not each step.
            self._module = DistributedDataParallel(model, find_unused_parameters=True, **_NO_BUFFER_SYNC)

    @property
    def loss_factor(self) -> float:
        """DDP averages over ranks; our losses are shares of the step's loss and must add up."""
        return 1.0 if self._module is self.bare else float(self.ranks.world)

    def forward(self, batch: Batch, state: State) -> tuple[Outputs, State]:
        return self._module(batch, state)

    @contextmanager
    def reducing(self, is_last: bool) -> Iterator[None]:
        """Around the forward and backward of one micro-batch of the step."""
        if isinstance(self._module, DistributedDataParallel) and not is_last:
            with self._module.no_sync():
                yield
        else:
            yield

    def finish(self) -> None:
        """After the last backward of the step: the flat all-reduce, where that is the way."""
        if self._flat:
            _reduce_flat([p for p in self.bare.parameters() if p.requires_grad], self.ranks)


def _reduce_flat(parameters: list[nn.Parameter], ranks: Ranks) -> None:
    """Sum gradients over ranks; what no rank used keeps None."""
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
