"""Small networks behind an encoder: projectors and predictors."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, Configured
from allsight.layers import ActivationName, make_activation
from allsight.layers.attention_block import TokenBatchNorm
from allsight.layers.norm import LAYER_NORM_EPS

HeadNorm = Literal["none", "layer", "batch"]


class Head(nn.Module, Configured):
    """Linear layers, each but the last followed by a norm and an activation.

    Batch norms take the statistics of all rows (and cells) of all ranks.
    """

    class Config(Config):
        """Settings of a head.

        Attributes:
            widths: Outputs of each linear layer; none: the head changes nothing.
            norm: After each linear layer but the last, which then have no bias with "batch".
            act: After that.
            last_norm: What follows the last linear layer: nothing, a batch norm, or one that does not learn.
            last_bias: Whether the last linear layer has a bias.
            prototypes: If set, unit vectors of the last width are compared with so many learnt unit vectors
                (DINO).
        """

        widths: tuple[int, ...] = ()
        norm: HeadNorm = "none"
        act: ActivationName = "relu"
        last_norm: Literal["none", "batch", "plain_batch"] = "none"
        last_bias: bool = True
        prototypes: int = Field(default=0, ge=0)

    def __init__(self, config: Head.Config, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, width in enumerate(config.widths):
            is_last = number == len(config.widths) - 1
            bias = config.last_bias if is_last else config.norm != "batch"
            layers.append(nn.Linear(channels, width, bias=bias))
            channels = width
            if not is_last:
                layers += [*_norms(config.norm, width), make_activation(config.act)]
        if config.last_norm != "none":
            layers.append(_RowBatchNorm(channels, affine=config.last_norm == "batch"))
        self.layers = nn.Sequential(*layers)
        self.out_channels = channels
        self.prototypes: nn.Parameter | None = None
        if config.prototypes:
            start = torch.empty(config.prototypes, channels)
            self.prototypes = nn.Parameter(nn.init.trunc_normal_(start, std=0.02))
            self.out_channels = config.prototypes

    def forward(self, x: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead d"]:
        x = self.layers(x)
        if self.prototypes is not None:
            x = F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        return x


class _RowBatchNorm(TokenBatchNorm):
    """Batch norm over all rows of [*lead, c]."""

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        nn.BatchNorm2d.__init__(self, channels, affine=affine)

    def forward(self, input: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead c"]:
        rows = super().forward(input.flatten(0, -2)[None])[0]
        return rows.view(input.shape)


def _norms(name: HeadNorm, channels: int) -> list[nn.Module]:
    if name == "batch":
        return [_RowBatchNorm(channels)]
    return [nn.LayerNorm(channels, eps=LAYER_NORM_EPS)] if name == "layer" else []
