"""What experts on several ranks add to a pass: tokens that travel, and copies that are kept of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from allsight.layers import ExpertLinear, TokenMix, is_recomputing


class ExpertExchange:
    """Follows the experts of a pass that ranks share.

    Every choice of a token is taken to travel to its expert and back, forward and backward, and each rank to
    get as many as it sends. Of each, what arrives and what comes back is kept for the backward pass.

    Args:
        layers: Those whose experts are shared.

    Attributes:
        bytes: Sent by a rank in a pass, were all its choices on other ranks.
    """

    def __init__(self, layers: Sequence[ExpertLinear]) -> None:
        self._layers = layers
        self.bytes = 0

    def hooks(self) -> Iterator[Any]:
        """Follow the layers; handles to remove what was hung onto them."""
        for layer in self._layers:
            yield layer.register_forward_hook(self._after)

    def _after(self, layer: ExpertLinear, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x, mix = inputs
        assert isinstance(mix, TokenMix)
        kept = x.new_empty(mix.experts.numel(), x.shape[-1] + output.shape[-1])
        # What is recomputed is sent once more; its gradients travel once.
        self.bytes += kept.nbytes * (1 if is_recomputing() else 2)
        return _Keeping.apply(output, kept) if torch.is_grad_enabled() else output


class _Keeping(torch.autograd.Function):
    """The same tensor, whose backward pass needs another one."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None
