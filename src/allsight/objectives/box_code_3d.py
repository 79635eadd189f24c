"""Ten numbers of a box in space, as BEVFormer's networks give them.

x, y, log width, log length, z of the middle, log height, -cos yaw, -sin yaw, velocity x and y. Metres and
metres per second in the reference frame. The two numbers of the heading are the sine and cosine of an older
angle, -yaw - pi / 2, which published weights speak of.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from allsight.types import Boxes3D

CODE_SIZE = 10


def encode_boxes(boxes: Boxes3D) -> Float[Tensor, "*b k 10"]:
    """The code of each box; unknown velocities stay NaN, sizes of 0 become -inf."""
    x, y, z = boxes.centers_ref_m.unbind(-1)
    length, width, height = boxes.sizes_m.log().unbind(-1)
    cos, sin = -boxes.yaw_rad.cos(), -boxes.yaw_rad.sin()
    return torch.stack(
        [x, y, width, length, z, height, cos, sin, *boxes.velocities_ref_mps.unbind(-1)], dim=-1
    )


def decode_boxes(
    codes: Float[Tensor, "*b k 10"],
    labels: Int64[Tensor, "*b k"],
    scores: Float[Tensor, "*b k"] | None = None,
) -> Boxes3D:
    """The boxes of codes; the length of a heading's vector does not matter."""
    x, y, width, length, z, height, cos, sin = codes[..., :8].unbind(-1)
    return Boxes3D(
        centers_ref_m=torch.stack([x, y, z], dim=-1),
        sizes_m=torch.stack([length, width, height], dim=-1).exp(),
        yaw_rad=torch.atan2(-sin, -cos),
        velocities_ref_mps=codes[..., 8:],
        labels=labels,
        scores=scores,
    )


def boxes_from_bevformer(
    rows: Float[Tensor, "k 9"], labels: Int64[Tensor, " k"], *, bottom: bool = True
) -> Boxes3D:
    """Boxes out of info files and results of BEVFormer: x, y, z, width, length, height, r, velocity x, y.

    Args:
        rows: r turns from -y against the usual sense: yaw = -r - pi / 2.
        labels: Class indices.
        bottom: z is that of the bottom's middle, not the box's.

    Source: the boxes of open-mmlab/mmdetection3d 0.17, which fundamentalvision/BEVFormer uses.
    """
    x, y, z, width, length, height, turn, vx, vy = rows.unbind(-1)
    return Boxes3D(
        torch.stack([x, y, z + height / 2 if bottom else z], dim=-1),
        torch.stack([length, width, height], dim=-1),
        -turn - math.pi / 2,
        torch.stack([vx, vy], dim=-1),
        labels,
    )


def boxes_to_bevformer(boxes: Boxes3D, *, bottom: bool = True) -> Float[Tensor, "k 9"]:
    """The inverse of `boxes_from_bevformer`; r comes out within pi of 0."""
    x, y, z = boxes.centers_ref_m.unbind(-1)
    length, width, height = boxes.sizes_m.unbind(-1)
    turn = torch.atan2(-boxes.yaw_rad.cos(), -boxes.yaw_rad.sin())
    if bottom:
        z = z - height / 2
    return torch.stack([x, y, z, width, length, height, turn, *boxes.velocities_ref_mps.unbind(-1)], dim=-1)
