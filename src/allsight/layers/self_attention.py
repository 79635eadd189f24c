"""Self-attention over tokens [b, t, c], with a memory of keys and values for decoding word by word."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allsight.layers.experts import LinearMaker, Mix, apply_linear


class KeyValues:
    """Keys and values of what one layer has seen, for rows that grow together.

    Args:
        rows: How many rows.
        heads: Attention heads.
        length: Tokens there is room for.
        head_channels: Width of one head.
    """

    def __init__(self, rows: int, heads: int, length: int, head_channels: int, like: Tensor) -> None:
        self.keys = like.new_zeros(rows, heads, length, head_channels)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def put(self, keys: Tensor, values: Tensor, *, keep: int) -> tuple[Tensor, Tensor]:
        """Append tokens and return all; only the first `keep` of the new ones stay for the next call."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length += keep
        return self.keys[:, :, :end], self.values[:, :, :end]

    def pick(self, rows: Tensor) -> None:
        """Make row i what row `rows[i]` was; there may be more or fewer than before."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Args:
        channels: Width of the tokens.
        heads: Attention heads; divides `channels`.
        linear: Makes the two projections; a group of experts wants `mix` in the call.

    Raises:
        ValueError: `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, *, heads: int, linear: LinearMaker = nn.Linear) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"SelfAttention: heads: expected a divisor of channels={channels}, got {heads}")
        self.heads = heads
        self.qkv = linear(channels, 3 * channels)
        self.proj = linear(channels, channels)

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        mask: Bool[Tensor, "rows asking seen"] | None = None,
        *,
        mix: Mix | None = None,
        memory: KeyValues | None = None,
        keep: int = 0,
        prompts: Float[Tensor, "p c"] | None = None,
        prompt_mix: Mix | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Attend.

        Args:
            x: Tokens.
            mask: True where a token may look, [b or 1, t, tokens of the memory and t]; None: everywhere.
            mix: Which experts, where projections are groups of them.
            memory: What was seen before; `x` comes after it.
            keep: How many of the first tokens of `x` the memory keeps.
            prompts: Tokens that all look at, in front of all others; no memory keeps them.
            prompt_mix: `mix` of these.
        """
        qkv = apply_linear(self.qkv, x, mix)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )  # [b, heads, t, c / heads]
        if memory is not None:
            key, value = memory.put(key, value, keep=keep)
        if prompts is not None:
            _, *more = apply_linear(self.qkv, prompts[None], prompt_mix).chunk(3, dim=-1)
            rows = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in more]
            key, value = (
                torch.cat([row.expand(len(x), -1, -1, -1), part], dim=2)
                for row, part in zip(rows, (key, value), strict=True)
            )
            mask = mask if mask is None else F.pad(mask, (len(prompts), 0), value=True)
        mask = None if mask is None else mask[:, None]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return apply_linear(self.proj, seen.transpose(1, 2).flatten(2), mix)
