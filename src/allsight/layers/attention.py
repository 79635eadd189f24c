"""Attention over tokens [b, t, c]."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.norm import LAYER_NORM_EPS


class AttentionPool(nn.Module):
    """Pool tokens into one vector: the mean token asks, all tokens answer.

    Query, keys and values have layer norms of their own; there is no residual path and no position.

    Args:
        channels: Width of the tokens.
        out_channels: Width of the result.
        heads: Attention heads; divides `channels`.
        bias: Whether query, key and value projections have a bias.
        scale: Factor on the logits; default (channels / heads) ** -0.5.

    Raises:
        ValueError: `heads` does not divide `channels`.

    Source: OpenGVLab/InternImage:classification/models/intern_image.py, AttentionPoolingBlock.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        heads: int,
        bias: bool = True,
        scale: float | int | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"AttentionPool: heads: expected a divisor of channels={channels}, got {heads}")
        self.heads, self.scale = heads, scale
        self.norm_q = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.norm_k = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.norm_v = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.q = nn.Linear(channels, channels, bias=bias)
        self.k = nn.Linear(channels, channels, bias=bias)
        self.v = nn.Linear(channels, channels, bias=bias)
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, tokens: Float[Tensor, "b t c"]) -> Float[Tensor, "b out"]:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b, heads, t, c / heads]

        query = split(self.q(self.norm_q(tokens.mean(1, keepdim=True))))
        keys = split(self.k(self.norm_k(tokens)))
        values = split(self.v(self.norm_v(tokens)))
        pooled = F.scaled_dot_product_attention(query, keys, values, scale=self.scale)
        return self.proj(pooled.transpose(1, 2).flatten(1))
