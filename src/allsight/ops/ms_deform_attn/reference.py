"""Multi-scale deformable attention in plain PyTorch: the formulation of the official fall-back.

Exact in float64, runs on every device; the twin all kernels are tested against and the yardstick of the
benchmarks, so its order of operations is that of Deformable-DETR and should stay so.

Letters: b batch, s pixels of all levels, m heads, d channels per head, q queries, l levels, p points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allsight.ops._grid import near_the_map
from allsight.ops.ms_deform_attn._shapes import Shapes


def ms_deform_attn_reference(
    value: Float[Tensor, "b s m d"],
    locations: Float[Tensor, "b q m l p 2"],
    weights: Float[Tensor, "b q m l p"],
    shapes: Shapes,
    softmax: bool,
) -> Float[Tensor, "b q mxd"]:
    """Compute `allsight.ops.ms_deform_attn` with one `F.grid_sample` per level.

    16-bit inputs are computed in float32 and rounded once at the end; coordinates are float32 at least.
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    dtype = torch.promote_types(torch.promote_types(value.dtype, locations.dtype), torch.float32)
    dtype = torch.promote_types(dtype, weights.dtype)

    grids = near_the_map(2 * locations.to(dtype) - 1)
    sampled = []
    maps_of_levels = value.to(dtype).split([height * width for height, width in shapes], dim=1)
    for level, (maps, (height, width)) in enumerate(zip(maps_of_levels, shapes, strict=True)):
        maps = maps.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [b m, q, p, 2]
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))

    weights = weights.to(dtype).flatten(3)
    weights = (weights.softmax(-1) if softmax else weights).transpose(1, 2)
    weights = weights.reshape(batch * heads, 1, queries, levels * points)
    mixed = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)  # [b m, d, q]
    mixed = mixed.reshape(batch, heads * channels, queries).transpose(1, 2)
    return mixed.to(value.dtype).contiguous()
