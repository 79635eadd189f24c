"""Stochastic depth."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for whole samples in training, and scale the kept ones by 1 / (1 - probability).

    Draws come from torch's global generator, one per sample and call.

    Args:
        probability: Chance that a sample loses the branch, in [0, 1); 0 and evaluation mode change nothing.

    Raises:
        ValueError: `probability` outside [0, 1).

    Source: Deep Networks with Stochastic Depth, arXiv:1603.09382.
    """

    def __init__(self, probability: float | int = 0.0) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"DropPath: probability: expected 0 <= p < 1, got {probability}")
        self.probability = probability

    def forward(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        if self.probability == 0.0 or not self.training:
            return x
        kept = 1.0 - self.probability
        sample = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(kept)
        return x * sample.div_(kept)

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3g}"
