"""Normalisation of channels-last maps [b, h, w, c].

Maps stay channels last throughout the InternImage family: linear layers and layer norms then work on
contiguous rows, and a convolution sees the same memory as a `channels_last` tensor without a copy.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

NormName = Literal["layer", "batch"]
LAYER_NORM_EPS = 1e-6


class BatchNormLast(nn.BatchNorm2d):
    """Batch norm over [b, h, w, c] with the parameters and buffers of `nn.BatchNorm2d`.

    Statistics are those of the micro-batch on this rank, so results depend on how a batch is split.
    """

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


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
