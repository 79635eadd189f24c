"""Soft assignments to prototypes as targets, kept from collapse by centring and sharpening.

Letters: b rows, k prototypes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allsight.objectives.gathering import gather_rows


def prototype_nll(
    logits: Float[Tensor, "*lead k"],
    target_logits: Float[Tensor, "*lead k"],
    centre: Float[Tensor, " k"],
    *,
    temperature: float = 0.1,
    target_temperature: float = 0.04,
) -> Float[Tensor, "*lead"]:
    """Cross entropy between the target's softmax, centred and sharpened, and that of the prediction.

    Source: DINO, arXiv:2104.14294, algorithm 1.
    """
    target = ((target_logits - centre) / target_temperature).softmax(-1).detach()
    return -(target * (logits / temperature).log_softmax(-1)).sum(-1)


class Centre(nn.Module):
    """A running mean of the target's logits over all ranks.

    A forward pass calls `offer`; the owning model calls `advance` from `after_step`.

    Args:
        channels: Prototypes.
        momentum: Weight of the old mean.
    """

    mean: Float[Tensor, " k"]

    def __init__(self, channels: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self._offered: list[Tensor] = []

    @torch.no_grad()
    def offer(self, logits: Float[Tensor, "b k"]) -> None:
        """Keep this micro-batch's mean for `advance`; all ranks call it equally often."""
        self._offered.append(gather_rows(logits.detach().mean(0, keepdim=True)))

    @torch.no_grad()
    def advance(self) -> None:
        """Move towards the mean of what was offered since the last call."""
        if self._offered:
            new = torch.cat(self._offered).mean(0).to(self.mean)
            self.mean.mul_(self.momentum).add_(new, alpha=1 - self.momentum)
            self._offered = []

    def forget_offers(self) -> None:
        """Drop what a step that was skipped has offered."""
        self._offered = []
