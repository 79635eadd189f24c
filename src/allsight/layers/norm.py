"""Normalisation of channels-last maps [b, h, w, c].

Maps stay channels last throughout the InternImage family: linear layers and layer norms then work on
contiguous rows, and a convolution sees the same memory as a `channels_last` tensor without a copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NormName = Literal["layer", "batch"]
LAYER_NORM_EPS = 1e-6


_statistics_frozen = False


@contextmanager
def without_statistics() -> Iterator[None]:
    """Let batch norms of this block (all threads) leave their running statistics alone.

    For a forward pass that is run a second time to recompute activations.
    """
    global _statistics_frozen
    before, _statistics_frozen = _statistics_frozen, True
    try:
        yield
    finally:
        _statistics_frozen = before


class BatchNormLast(nn.BatchNorm2d):
    """Batch norm over [b, h, w, c] with the parameters and buffers of `nn.BatchNorm2d`.

    Statistics are those of the micro-batch on this rank, so results depend on how a batch is split.
    """

    def forward(self, input: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = input.permute(0, 3, 1, 2)
        if self.training and _statistics_frozen:
            mean, var = self.running_mean, self.running_var
            x = F.batch_norm(x, mean, var, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps)
        else:
            x = super().forward(x)
        return x.permute(0, 2, 3, 1)


def make_norm(name: NormName, channels: int) -> nn.Module:
    """Return a norm over the last dimension of [b, h, w, c].

    Args:
        name: "layer" (per pixel, eps 1e-6) or "batch" (eps 1e-5, running statistics).

    Raises:
        ValueError: Unknown name.
    """
    if name == "layer":
        return nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
    if name == "batch":
        return BatchNormLast(channels)
    raise ValueError(f"norm: expected 'layer' or 'batch', got {name!r}")
