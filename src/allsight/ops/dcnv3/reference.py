"""DCNv3 in plain PyTorch: exact in float64, runs on every device, the twin all kernels are tested against.

Letters: b batch, h w input map, ho wo output map, g groups, c channels of all groups, p kernel points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allsight.ops._grid import near_the_map
from allsight.ops.dcnv3._geometry import Geometry


def dcnv3_reference(
    value: Float[Tensor, "b h w c"],
    offset: Float[Tensor, "b ho wo gpx2"],
    mask: Float[Tensor, "b ho wo gp"],
    geometry: Geometry,
    softmax: bool,
) -> Float[Tensor, "b ho wo c"]:
    """Compute `allsight.ops.dcnv3` with `F.grid_sample` on one map per image and group.

    16-bit inputs are computed in float32 and rounded once at the end; coordinates are float32 at least.
    """
    batch, height, width, channels = value.shape
    rows, columns = offset.shape[1:3]
    groups, points = geometry.groups, geometry.points
    dtype = torch.promote_types(torch.promote_types(value.dtype, offset.dtype), torch.float32)
    dtype = torch.promote_types(dtype, mask.dtype)

    # Points before pixels: mixing the points then runs over whole rows of memory, which is up to 1.8 times
    # faster on a CPU than the pixels-first layout of the official fall-back.
    offset = offset.to(dtype).reshape(batch, rows * columns, groups, points, 2).permute(0, 2, 3, 1, 4)
    grid = torch.addcmul(
        _regular_grid(geometry, height, width, rows, columns, dtype, value.device),
        offset,
        _per_pixel(geometry, height, width, dtype, value.device),
    )
    grid = near_the_map(grid.flatten(0, 1))

    maps = value.to(dtype).reshape(batch, height * width, channels).transpose(1, 2)
    maps = maps.reshape(batch * groups, channels // groups, height, width)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    weights = mask.to(dtype).reshape(batch, rows * columns, groups, points)
    weights = (weights.softmax(-1) if softmax else weights).permute(0, 2, 3, 1)
    weights = weights.reshape(batch * groups, 1, points, rows * columns)
    mixed = (sampled * weights).sum(2)  # [b g, c / g, ho wo]
    mixed = mixed.reshape(batch, channels, rows * columns).transpose(1, 2)
    return mixed.reshape(batch, rows, columns, channels).to(value.dtype)


def _regular_grid(
    geometry: Geometry,
    height: int,
    width: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Float[Tensor, "p howo 2"]:
    """Place all points at zero offset, in the normalised coordinates of `F.grid_sample`."""
    (reach_y, reach_x), scale = geometry.reach, geometry.offset_scale

    def axis(outputs: int, which: int, reach: int, size: int) -> Tensor:
        centers = torch.arange(outputs, dtype=dtype, device=device) * geometry.stride[which]
        steps = torch.arange(geometry.kernel_size[which], dtype=dtype, device=device)
        pixels = (centers - geometry.padding[which] + reach)[:, None] + scale * (
            steps * geometry.dilation[which] - reach
        )
        return (2 * pixels + 1) / size - 1  # [output pixel, kernel point]

    y = axis(rows, 0, reach_y, height).t()[None, :, :, None]
    x = axis(columns, 1, reach_x, width).t()[:, None, None, :]
    # The column of the kernel is the slow index of a point, its row the fast one.
    shape = (geometry.kernel_size[1], geometry.kernel_size[0], rows, columns)
    grid = torch.stack([x.expand(shape), y.expand(shape)], dim=-1).reshape(-1, rows * columns, 2)
    if geometry.remove_center:
        center = geometry.points // 2
        grid = torch.cat([grid[:center], grid[center + 1 :]])
    return grid


def _per_pixel(
    geometry: Geometry, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, " 2"]:
    """Return how far one unit of offset moves a point in normalised coordinates, (x, y)."""
    step = 2 * geometry.offset_scale
    sizes = [torch.full((), step / size, dtype=dtype, device=device) for size in (width, height)]
    return torch.stack(sizes)
