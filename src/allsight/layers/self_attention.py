"""Self-attention over tokens [b, t, c], with a memory of keys and values for decoding word by word."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
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
        # Side by side, so that one copy appends to both.
        self._seen = like.new_zeros(2, rows, heads, length, head_channels)
        self.length = 0

    def put(
        self, new: Float[Tensor, "2 b heads t d"], *, keep: int
    ) -> tuple[Float[Tensor, "b heads seen d"], Float[Tensor, "b heads seen d"]]:
        """Append tokens and return the keys and the values of all.

        Args:
            new: Keys and values of the new ones.
            keep: How many of the first new ones stay for the next call.
        """
        count = new.shape[3]
        self._seen.narrow(3, self.length, count).copy_(new)
        keys, values = self._seen.narrow(3, 0, self.length + count).unbind()
        self.length += keep
        return keys, values

    def spread(self, times: int) -> None:
        """Each row becomes `times` rows, which lie side by side."""
        self._seen = self._seen.repeat_interleave(times, dim=1)

    def pick(self, rows: Int64[Tensor, " b"], *, since: int = 0) -> None:
        """Make row i what row `rows[i]` was; both have the first `since` tokens in common."""
        self._seen[:, :, :, since : self.length] = self._seen[:, rows, :, since : self.length]


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
        mask: Bool[Tensor, "rows asking seen"] | Float[Tensor, "rows asking seen"] | None = None,
        *,
        mix: Mix | None = None,
        memory: KeyValues | None = None,
        keep: int = 0,
        asks: int | None = None,
        prompts: Float[Tensor, "p c"] | None = None,
        prompt_mix: Mix | None = None,
    ) -> Float[Tensor, "b answered c"]:
        """Attend.

        Args:
            x: Tokens.
            mask: True where a token may look, [b or 1, t, tokens of the memory and t]; None: everywhere.
                Or what is added to its scores, 0 and -inf: made once for many layers that is quicker.
            mix: Which experts, where projections are groups of them.
            memory: What was seen before; `x` comes after it.
            keep: How many of the first tokens of `x` the memory keeps.
            asks: How many of the last tokens of `x` are answered, where the others are only looked at (dense
                layers); None: all.
            prompts: Tokens that all look at, in front of all others; no memory keeps them.
            prompt_mix: `mix` of these.
        """
        qkv = apply_linear(self.qkv, x, mix).unflatten(-1, (3, self.heads, -1))  # [b, t, 3, heads, d]
        if memory is None:
            query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # [b, heads, t, d]
        else:
            parts = qkv.permute(2, 0, 3, 1, 4)
            query, (key, value) = parts[0], memory.put(parts[1:], keep=keep)
        if asks is not None:
            query = query[:, :, query.shape[2] - asks :]
            mask = mask if mask is None or mask.shape[1] == 1 else mask[:, mask.shape[1] - asks :]
        if prompts is not None:
            _, *more = apply_linear(self.qkv, prompts[None], prompt_mix).chunk(3, dim=-1)
            rows = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in more]
            key, value = (
                torch.cat([row.expand(len(x), -1, -1, -1), part], dim=2)
                for row, part in zip(rows, (key, value), strict=True)
            )
            if mask is not None:
                mask = F.pad(mask, (len(prompts), 0), value=float(mask.dtype == torch.bool))
        mask = None if mask is None else mask[:, None]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return apply_linear(self.proj, seen.transpose(1, 2).flatten(2), mix)
