"""Cells of a bird's-eye-view map look into the pictures of the cameras that see them.

Letters: b batch, n cameras, q cells, k cells of one camera, z heights of a pillar, c channels, m heads,
l levels, p points, s pixels of all levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from allsight.layers.ms_deform_attn import init_sampling, predict_offsets, sizes_of_levels
from allsight.ops import ms_deform_attn
from allsight.ops.ms_deform_attn import Shapes


@dataclass(frozen=True)
class SeenCells:
    """For each camera of each row, the cells that it sees. The same for all layers of a frame.

    Args:
        cells: Place of each cell among the cells of all rows, row * q + cell; filled up with cells that the
            camera does not see.
        is_seen: False where it is filled up.
        places: Where the points of the cell's pillar are in the picture, (x, y) in 0..1.
        cameras: How many cameras see a cell.
    """

    cells: Int64[Tensor, "bn k"]
    is_seen: Bool[Tensor, "bn k"]
    places: Float[Tensor, "bn k z 2"]
    cameras: Int64[Tensor, "b q"]


def find_seen_cells(
    places: Float[Tensor, "b n q z 2"], hits: Bool[Tensor, "b n q z"], *, most: int | None = None
) -> SeenCells:
    """List the cells of which a camera sees any height.

    Args:
        places: (x, y) in 0..1 of the pillars' points in all cameras.
        hits: Whether the point lies in the picture and before the camera.
        most: Room for so many cells per camera, so that shapes do not depend on the geometry (compilation,
            export); a camera that sees more loses the last ones. None: as many as needed, which waits for the
            device once.
    """
    rows, cells = hits.shape[0], hits.shape[2]
    seen = hits.any(-1)
    if most is None:
        most = max(int(seen.sum(-1).max()), 1)
    # The seen ones first, in their order: unique keys make the choice the same everywhere.
    order = torch.arange(cells, 0, -1, device=hits.device)
    chosen = (order + seen * cells).topk(min(most, cells)).indices  # [b, n, k]
    is_seen = seen.gather(2, chosen)
    index = chosen[..., None, None].expand(*chosen.shape, *places.shape[3:])
    first = torch.arange(rows, device=hits.device)[:, None, None] * cells
    return SeenCells(
        (chosen + first).flatten(0, 1),
        is_seen.flatten(0, 1),
        places.gather(2, index).flatten(0, 1),
        seen.sum(1),
    )


class SpatialCrossAttention(nn.Module):
    """Deformable attention of cells to the cameras that see them, averaged over these cameras.

    A cell's pillar stands at several heights; point p of a head starts at height p mod z. Offsets and weights
    depend on the cell alone, so they are predicted once per cell and gathered for every camera that sees it:
    one call of the operator serves all cameras of all rows. A cell that no camera sees gets the bias of the
    output.

    Args:
        channels: Width of queries, values and output.
        levels: Feature maps per camera.
        heads: Attention heads; divides `channels`.
        points: Sampling points per head and level; a multiple of the heights.
        drop: Dropout probability of the result.
        first_px: How far off its place each head's first point starts, in pixels of the level.
    Raises:
        ValueError: `heads` does not divide `channels`.

    Source: BEVFormer, arXiv:2203.17270, section 3.3;
    fundamentalvision/BEVFormer:projects/mmdet3d_plugin/bevformer/modules/spatial_cross_attention.py.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        levels: int = 4,
        heads: int = 8,
        points: int = 8,
        drop: float = 0.0,
        first_px: int = 1,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"SpatialCrossAttention: heads: expected a divisor of channels={channels}, got {heads}"
            )
        self.channels, self.levels, self.heads, self.points = channels, levels, heads, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.drop = nn.Dropout(drop)
        init_sampling(self, heads, levels, points, first_px=first_px)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        value: Float[Tensor, "bn s c"],
        shapes: Shapes,
        seen: SeenCells,
    ) -> Float[Tensor, "b q c"]:
        """Let the cells look at the pictures.

        Args:
            query: The cells.
            value: Features of each camera of each row, all levels one after the other.
            shapes: (height, width) of every level.
            seen: Which camera sees which cells, and where.
        """
        places, weights = self.looks(query, shapes, seen)
        mixed = ms_deform_attn(
            self.value_proj(value).unflatten(-1, (self.heads, self.channels // self.heads)),
            shapes,
            places,
            weights,
            softmax=True,
        )
        mixed = torch.where(seen.is_seen[..., None], mixed, 0.0)
        total = mixed.new_zeros(query.shape[0] * query.shape[1], self.channels)
        total = total.index_add(0, seen.cells.flatten(), mixed.flatten(0, 1)).view(query.shape)
        mean = total / seen.cameras.clamp_min(1)[..., None].to(total.dtype)
        return self.drop(self.output_proj(mean))

    def looks(
        self, query: Float[Tensor, "b q c"], shapes: Shapes, seen: SeenCells
    ) -> tuple[Float[Tensor, "bn k m l p 2"], Float[Tensor, "bn k m l p"]]:
        """Where the cells look in each camera, (x, y) in 0..1, and the weights there before their softmax."""
        heights = seen.places.shape[2]
        offsets = predict_offsets(self.sampling_offsets, query).flatten(0, 1)[seen.cells]  # [bn, k, mlp2]
        offsets = offsets.unflatten(-1, (self.heads, self.levels, self.points // heights, heights, 2))
        sizes = sizes_of_levels(shapes, offsets)[:, :, None]
        places = torch.addcdiv(seen.places[:, :, None, None, None], offsets, sizes).flatten(4, 5)
        weights = self.attention_weights(query).flatten(0, 1)[seen.cells]
        return places, weights.unflatten(-1, (self.heads, self.levels, self.points))

    def extra_repr(self) -> str:
        return f"{self.channels}, levels={self.levels}, heads={self.heads}, points={self.points}"
