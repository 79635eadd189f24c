"""One model over the ranks of a run, behind one small interface. Model code knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from allsight.engine.distributed import Ranks
from allsight.engine.parallel.experts import SplitExperts
from allsight.engine.parallel.same_passes import check_same_passes
from allsight.engine.parallel.shards import local_part, total_norm
from allsight.engine.parallel.tensors import Formats, Tensors, make_room, optimizer_tensors
from allsight.models.base import TaskModel
from allsight.types import Batch, Outputs, State, Step


@runtime_checkable
class Stepper(Protocol):
    """What changes the weights by their gradients: a PyTorch optimiser, or an engine around one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


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
        self._optimizer: torch.optim.Optimizer | None = None

    def take(self, optimizer: torch.optim.Optimizer) -> Stepper:
        """Make the optimiser of the model's parameters part of this; once, before the first step.

        Returns:
            What is to be stepped in its place.
        """
        self._optimizer = optimizer
        return optimizer

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

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch's share of the loss, added to those before."""
        loss.backward()

    def finish(self) -> None:
        """After the last backward of the step."""
        if self.ranks.world > 1:
            split = frozenset() if self.experts is None else self.experts.names
            whole = [p for name, p in self.bare.named_parameters() if p.requires_grad and name not in split]
            sum_gradients(whole, self.ranks)
        if self.experts is not None:
            self.experts.finish(self.loss_factor)

    def gradients(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Those of the step, for the caller to scale and bound; none where an engine does it by itself."""
        # Asked for once: each `grad` makes a new Python object, a hundred of them 0.1 ms.
        return [gradient for p in parameters if (gradient := p.grad) is not None]

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of all gradients of the step, over all shards; all ranks call this.

        Args:
            gradients: What `gradients` gave.
        """
        return total_norm(gradients)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within, the model may change its own weights after an optimiser step."""
        yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the bare model may be called by each rank as often as it likes, without gradients."""
        with nullcontext() if self.experts is None else self.experts.whole():
            yield

    def weight_shapes(self) -> dict[str, torch.Size]:
        """Name -> whole shape of each weight and buffer."""
        return {name: tensor.shape for name, tensor in self.bare.state_dict().items()}

    def tensors(self) -> Tensors:
        """Weights `model/NAME` and optimiser `optim/PARAMETER/ENTRY`, for a checkpoint.

        Whole or sharded as the ranks hold them; all ranks call this.
        """
        found = {f"model/{name}": tensor.detach() for name, tensor in self.bare.state_dict().items()}
        return found | optimizer_tensors(self._trained(), self._held_by_optimizer())

    @contextmanager
    def restoring(self, optim: Formats) -> Iterator[Tensors]:
        """What `tensors` gives, to be filled within.

        Args:
            optim: `PARAMETER/ENTRY` of what was stored of the optimiser.
        """
        if self._optimizer is not None:
            make_room(self._optimizer, self._trained(), optim)
        yield self.tensors()

    def held_bytes(self) -> dict[str, int]:
        """What this rank holds between steps: `parameters`, `gradients`, `optimiser`."""
        moments = [entry for entries in self._held_by_optimizer().values() for entry in entries.values()]
        trained = sum(local_part(p.detach()).nbytes for p in self._trained().values())
        return {
            "parameters": sum(local_part(p.detach()).nbytes for p in self.bare.parameters()),
            "gradients": trained,
            "optimiser": sum(local_part(m.detach()).nbytes for m in moments if isinstance(m, Tensor)),
        }

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.bare.named_parameters() if p.requires_grad}

    def _held_by_optimizer(self) -> Mapping[Any, Mapping[str, Any]]:
        return {} if self._optimizer is None else self._optimizer.state


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
