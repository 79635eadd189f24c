"""Transformer blocks over tokens [b, t, c].

Letters: b batch, t tokens, c channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allsight.layers.activation import ActivationName
from allsight.layers.drop import DropPath
from allsight.layers.mlp import MLP
from allsight.layers.norm import LAYER_NORM_EPS, SyncBatchNormLast

TokenNormName = Literal["layer", "batch"]


class SelfAttention(nn.Module):
    """Multi-head self-attention; names of parameters are those of published vision transformers.

    Args:
        channels: Width of the tokens.
        heads: Attention heads; divides `channels`.
        bias: Whether queries, keys and values have a bias.

    Raises:
        ValueError: `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, *, heads: int, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"SelfAttention: heads: expected a divisor of channels={channels}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "b t c"], mask: Bool[Tensor, "_ t t"] | None = None
    ) -> Float[Tensor, "b t c"]:
        """Mix tokens; where `mask` is False, a token (row) does not see another one (column)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class TokenBatchNorm(SyncBatchNormLast):
    """Batch norm over all tokens of all ranks, channel by channel."""

    def forward(self, input: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return super().forward(input[:, None])[:, 0]


def make_token_norm(name: TokenNormName, channels: int) -> nn.Module:
    """Return a norm of tokens: of each one ("layer"), or of each channel over all tokens ("batch")."""
    return nn.LayerNorm(channels, eps=LAYER_NORM_EPS) if name == "layer" else TokenBatchNorm(channels)


class AttentionBlock(nn.Module):
    """Attention, then an MLP, each with its norm before it and a residual path around both.

    Args:
        channels: Width of the tokens.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP in units of `channels`.
        norm: Which norm.
        act: Activation of the MLP.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_path: Probability of stochastic depth.
        layer_scale: First value of a learned factor per channel on both branches; None: no such factor.

    Source: An image is worth 16x16 words, arXiv:2010.11929.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        mlp_ratio: float = 4.0,
        norm: TokenNormName = "layer",
        act: ActivationName = "gelu",
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = make_token_norm(norm, channels)
        self.attn = SelfAttention(channels, heads=heads, bias=qkv_bias)
        self.ls1 = LayerScale(channels, layer_scale) if layer_scale is not None else nn.Identity()
        self.norm2 = make_token_norm(norm, channels)
        self.mlp = MLP(channels, int(channels * mlp_ratio), act=act)
        self.ls2 = LayerScale(channels, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "b t c"], mask: Bool[Tensor, "_ t t"] | None = None
    ) -> Float[Tensor, "b t c"]:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), mask)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return x * self.gamma
