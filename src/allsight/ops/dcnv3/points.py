"""Where DCNv3 and DCNv4 read the map: for people and for tests, not on the way of a forward pass."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from allsight.ops.dcnv3._geometry import Geometry


def sampling_points(
    offset: Float[Tensor, "b ho wo gpx2"], geometry: Geometry
) -> Float[Tensor, "b ho wo g p 2"]:
    """The (x, y) that each point reads, in pixels of the input map whose centers are integers.

    Args:
        offset: As for `allsight.ops.dcnv3`.
        geometry: The sampling pattern.
    """
    rows, columns = offset.shape[1:3]
    moved = offset.unflatten(-1, (geometry.groups, geometry.points, 2))

    def axis(outputs: int, which: int) -> tuple[Tensor, Tensor]:
        centers = torch.arange(outputs).to(offset) * geometry.stride[which]
        centers = centers - geometry.padding[which] + geometry.reach[which]
        steps = torch.arange(geometry.kernel_size[which]).to(offset) * geometry.dilation[which]
        return centers, steps - geometry.reach[which]

    (center_y, step_y), (center_x, step_x) = axis(rows, 0), axis(columns, 1)
    # The column of the kernel is the slow index of a point, its row the fast one.
    kernel = torch.stack(torch.meshgrid(step_x, step_y, indexing="ij"), dim=-1).flatten(0, 1)
    if geometry.remove_center:
        middle = geometry.points // 2
        kernel = torch.cat([kernel[:middle], kernel[middle + 1 :]])
    y, x = torch.meshgrid(center_y, center_x, indexing="ij")
    return torch.stack([x, y], dim=-1)[:, :, None, None] + geometry.offset_scale * (kernel + moved)
