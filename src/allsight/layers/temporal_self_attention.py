"""Cells of a bird's-eye-view map look at the map of the frame before and at their own.

Letters: b batch, q cells, c channels, m heads, p points.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allsight.layers.ms_deform_attn import init_sampling, predict_offsets, sizes_of_levels
from allsight.ops import ms_deform_attn

_BRANCHES = 2  # what was, what is


class TemporalSelfAttention(nn.Module):
    """Deformable attention of cells to two maps, the past and the present; the mean of both.

    Weights are normalised over the points of each map. Both maps go through one call of the operator, as two
    levels. Where there is no past, both maps are the query itself.

    Args:
        channels: Width of queries and output.
        heads: Attention heads; divides `channels`.
        points: Sampling points per head and map.
        drop: Dropout probability of the result.
        first_px: How far off its place each head's first point starts, in cells.
    Raises:
        ValueError: `heads` does not divide `channels`.

    Source: BEVFormer, arXiv:2203.17270, section 3.4;
    fundamentalvision/BEVFormer:projects/mmdet3d_plugin/bevformer/modules/temporal_self_attention.py (the mean
    of the two maps; the paper writes their sum).
    """

    def __init__(
        self, channels: int = 256, *, heads: int = 8, points: int = 4, drop: float = 0.0, first_px: int = 1
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"TemporalSelfAttention: heads: expected a divisor of channels={channels}, got {heads}"
            )
        self.channels, self.heads, self.points = channels, heads, points
        self.sampling_offsets = nn.Linear(2 * channels, heads * _BRANCHES * points * 2)
        self.attention_weights = nn.Linear(2 * channels, heads * _BRANCHES * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.drop = nn.Dropout(drop)
        init_sampling(self, heads, _BRANCHES, points, first_px=first_px)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        position: Float[Tensor, "b q c"],
        places: Float[Tensor, "#b q 2 2"],
        hw: tuple[int, int],
        past: Float[Tensor, "b q c"] | None = None,
        *,
        present: Float[Tensor, "b q c"] | None = None,
        has_past: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b q c"]:
        """Let the cells look around.

        Args:
            query: The cells, row by row of the map.
            position: Position embedding, which only helps to predict where to look.
            places: Where each cell starts to look in the past and in the present map, (x, y) in 0..1.
            hw: Rows and columns of the map.
            past: The map before, brought to the present frame; None: no row has one.
            present: The map that stands for the present in rows with a past; None: the query itself.
            has_past: Rows whose past counts; None: all.
        """
        if past is None:
            first, value = query, self.value_proj(query).repeat(1, _BRANCHES, 1)
        else:
            second = query if present is None else present
            first = past
            if has_past is not None:
                first = torch.where(has_past[:, None, None], past, query)
                second = torch.where(has_past[:, None, None], second, query)
            value = self.value_proj(torch.cat([first, second], dim=1))
        asking = torch.cat([first, query + position], dim=-1)
        offsets = predict_offsets(self.sampling_offsets, asking)
        offsets = offsets.unflatten(-1, (self.heads, _BRANCHES, self.points, 2))
        weights = self.attention_weights(asking).unflatten(-1, (self.heads, _BRANCHES, self.points))
        shapes = (hw,) * _BRANCHES
        mixed = ms_deform_attn(
            value.unflatten(-1, (self.heads, self.channels // self.heads)),
            shapes,
            torch.addcdiv(places[:, :, None, :, None], offsets, sizes_of_levels(shapes, offsets)),
            weights.softmax(-1) / _BRANCHES,
        )
        return self.drop(self.output_proj(mixed))

    def extra_repr(self) -> str:
        return f"{self.channels}, heads={self.heads}, points={self.points}"
