"""Places as sines and cosines of many wavelengths."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sincos(places: Float[Tensor, "*shape"], channels: int) -> Float[Tensor, "*shape channels"]:
    """[sin(p w_k)], [cos(p w_k)] with w_k = 10000^(-k / (channels / 2)).

    Args:
        places: Any numbers.
        channels: Even.
    Raises:
        ValueError: `channels` is odd.
    Source: Attention is all you need, arXiv:1706.03762, section 3.5, with sines and cosines apart.
    """
    if channels % 2:
        raise ValueError(f"sincos: channels: expected an even number, got {channels}")
    half = channels // 2
    rates = 10_000.0 ** (-torch.arange(half, dtype=places.dtype, device=places.device) / half)
    angles = places[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def sincos_2d(
    rows: Float[Tensor, "*shape"], columns: Float[Tensor, "*shape"], channels: int
) -> Float[Tensor, "*shape channels"]:
    """Half of the channels for the column, then half for the row.

    Raises:
        ValueError: 4 does not divide `channels`.
    Source: facebookresearch/mae:util/pos_embed.py (which puts the column first).
    """
    if channels % 4:
        raise ValueError(f"sincos_2d: channels: expected a multiple of 4, got {channels}")
    return torch.cat([sincos(columns, channels // 2), sincos(rows, channels // 2)], -1)


def grid_places(
    height: int, width: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, " cells"], Float[Tensor, " cells"]]:
    """Row and column of every cell of a grid, row by row."""
    rows = torch.arange(height, device=device, dtype=dtype).repeat_interleave(width)
    columns = torch.arange(width, device=device, dtype=dtype).repeat(height)
    return rows, columns
