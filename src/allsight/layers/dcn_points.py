"""The samples of a DCNv3 one by one, for layers that weigh each sampling point with a matrix of its own.

Letters: b batch, h w input map, ho wo output map, g groups, p points, c channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from allsight.ops import dcnv3


def dcnv3_points(
    value: Float[Tensor, "b h w c"],
    offset: Float[Tensor, "b ho wo gpx2"],
    mask: Float[Tensor, "b ho wo gp"],
    *,
    groups: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    offset_scale: float | int,
    remove_center: bool,
    softmax: bool,
) -> Float[Tensor, "b ho wo pc"]:
    """The terms that `allsight.ops.dcnv3` adds up, side by side: point 0 with all its channels, point 1 ...

    Each point is a DCNv3 of kernel size 1 whose offset holds the point's place in the grid, so this takes as
    many samples as the operator, and `points` times its memory.

    Args:
        kernel_size: Odd.
        padding: At least the reach of the kernel, `dilation * (kernel_size - 1) / 2`.

    Other arguments are those of `allsight.ops.dcnv3`.
    """
    (kernel_h, kernel_w), (dilation_h, dilation_w) = kernel_size, dilation
    reach_h, reach_w = dilation_h * (kernel_h - 1) // 2, dilation_w * (kernel_w - 1) // 2
    grid = [
        (x * dilation_w - reach_w, y * dilation_h - reach_h)
        for x in range(kernel_w)
        for y in range(kernel_h)
        if not (remove_center and (y, x) == (kernel_h // 2, kernel_w // 2))
    ]
    offset = offset.unflatten(-1, (groups, len(grid), 2))
    mask = mask.unflatten(-1, (groups, len(grid)))
    if softmax:
        mask = mask.softmax(-1)
    terms = []
    for number, place in enumerate(grid):
        moved = offset[..., number, :] + offset.new_tensor(place)
        terms.append(
            dcnv3(
                value,
                moved.flatten(-2),
                mask[..., number].contiguous(),
                groups=groups,
                kernel_size=1,
                stride=stride,
                padding=(padding[0] - reach_h, padding[1] - reach_w),
                offset_scale=offset_scale,
            )
        )
    return torch.cat(terms, dim=-1)
