"""Convolution between channels-last maps."""

from jaxtyping import Float
from torch import Tensor, nn


class ConvLast(nn.Conv2d):
    """`nn.Conv2d` on [b, h, w, c]; permuting views only, the memory is already what `channels_last` means."""

    def forward(self, input: Float[Tensor, "b h w cin"]) -> Float[Tensor, "b ho wo cout"]:
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
