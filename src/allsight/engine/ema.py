"""An average of the weights over steps (Polyak averaging), kept in float32 or wider, sharded as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from allsight.engine.parallel.shards import local_part


class WeightAverage:
    """Averages the trainable parameters; buffers and frozen parameters are the model's own.

    Args:
        model: The bare model, already on its device.
        decay: Weight of the old average per step.
        warmup: Use min(decay, (1 + n) / (10 + n)) in step n.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool) -> None:
        self.decay, self.warmup = decay, warmup
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages: dict[str, Tensor] = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._parameters.items()
        }
        # The arithmetic is done on what this rank holds.
        self._average_list = [local_part(average) for average in self.averages.values()]
        self._parameter_list = [local_part(p.detach()) for p in self._parameters.values()]
        pairs = zip(self._average_list, self._parameter_list, strict=True)
        self._is_wider = any(average.dtype is not p.dtype for average, p in pairs)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights; `step` counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        sources = self._parameter_list
        if self._is_wider:
            sources = [p.to(a.dtype) for p, a in zip(sources, self._average_list, strict=True)]
        torch._foreach_lerp_(self._average_list, sources, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        kept = [p.clone() for p in self._parameter_list]
        # Copied, not put in their place: whoever shards parameters keeps views of their memory.
        try:
            torch._foreach_copy_(self._parameter_list, self._average_list)
            yield
        finally:
            torch._foreach_copy_(self._parameter_list, kept)
