"""How the map of the frame before becomes that of the present frame, and what is told of the motion.

By default the relative pose of the two reference frames warps the past with one bilinear look-up. The rules
of the published weights differ in everything: see the functions `official_*`.

Letters: b rows, q cells, c channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from allsight.types import BEVGrid, CameraRig

MOTION_SIZE = 8
"""Numbers that describe a motion: translation (3, in 10 m), rotation (3), seconds, 1 if there is a past."""

CAN_BUS_SIZE = 18
"""Numbers of BEVFormer's CAN-bus vector: position in the world (3, m), quaternion w x y z of the vehicle's
pose, acceleration, rotation rate and velocity in the vehicle's frame (3 each; 0 where unknown), heading in
the world in rad and in degrees, both in one turn from 0 on."""


def warp_past(
    past: Float[Tensor, "b q c"], old_from_new: Float[Tensor, "b 4 4"], grid: BEVGrid
) -> Float[Tensor, "b q c"]:
    """The past as seen from the present frame: each cell looks where its center (z = 0) was; zero outside.

    Args:
        past: Map of the frame before, cells row by row.
        old_from_new: Where points of the present frame lie in the frame before.
        grid: Where cells are, in both frames.
    """
    centers = grid.centers_m(old_from_new)
    moved = centers @ old_from_new[:, :2, :2].transpose(1, 2) + old_from_new[:, None, :2, 3]
    return _look_up(past, 2 * grid.to_parts(moved) - 1, grid.hw, mode="bilinear")


def motion_signals(
    old_from_new: Float[Tensor, "b 4 4"], gap_s: Float[Tensor, " b"], has_past: Bool[Tensor, " b"]
) -> Float[Tensor, "b 8"]:
    """What the network is told of the motion since the frame before; zeros where there is none.

    Nothing of it depends on where the world's origin is or how its axes lie.
    """
    turn = old_from_new[:, :3, :3]
    rotation = torch.stack(
        [turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]], dim=-1
    )
    known = torch.ones_like(gap_s)[:, None]
    signals = torch.cat([old_from_new[:, :3, 3] / 10, rotation / 2, gap_s[:, None], known], dim=-1)
    return torch.where(has_past[:, None], signals, 0.0)


def official_can_bus(rig: CameraRig) -> Float[Tensor, "b 18"]:
    """The absolute CAN-bus vector: the rig's own, else made from poses, without acceleration and velocity.

    Source: fundamentalvision/BEVFormer:projects/mmdet3d_plugin/datasets/nuscenes_dataset.py.
    """
    if rig.can_bus is not None:
        return rig.can_bus.double()
    pose = rig.world_from_ego.double()
    yaw = torch.atan2(pose[:, 1, 0], pose[:, 0, 0]).remainder(2 * math.pi)
    unknown = pose.new_zeros((len(pose), 9))
    return torch.cat(
        [pose[:, :3, 3], _quaternions(pose), unknown, yaw[:, None], yaw.rad2deg()[:, None]], dim=-1
    )


def official_can_bus_since(
    now: Float[Tensor, "b 18"], before: Float[Tensor, "b 18"], has_past: Bool[Tensor, " b"]
) -> Float[Tensor, "b 18"]:
    """The vector as the network gets it: way and turn (degrees, not wrapped) since the frame before, or 0.

    Source: fundamentalvision/BEVFormer:projects/mmdet3d_plugin/bevformer/detectors/bevformer.py.
    """
    way = torch.where(has_past[:, None], now[:, :3] - before[:, :3], 0.0)
    turn = torch.where(has_past[:, None], now[:, -1:] - before[:, -1:], 0.0)
    return torch.cat([way, now[:, 3:-1], turn], dim=-1)


def official_shift(can_bus: Float[Tensor, "b 18"], grid: BEVGrid) -> Float[Tensor, "b 2"]:
    """Way since the frame before, to the right and ahead, in parts of the range.

    Source: fundamentalvision/BEVFormer:projects/mmdet3d_plugin/bevformer/modules/transformer.py.
    """
    dx, dy, heading = can_bus[:, 0], can_bus[:, 1], can_bus[:, -2]
    length, angle = torch.hypot(dx, dy), heading - torch.atan2(dy, dx)
    return torch.stack([length * angle.sin() / grid.size_m[0], length * angle.cos() / grid.size_m[1]], dim=-1)


def official_rotation(
    past: Float[Tensor, "b q c"],
    turn_deg: Float[Tensor, " b"],
    hw: tuple[int, int],
    center: tuple[float, float],
) -> Float[Tensor, "b q c"]:
    """The past turned about a cell, each cell taking the nearest one; zero outside. A copy.

    Args:
        past: Map of the frame before.
        turn_deg: Change of the vehicle's heading.
        hw: Rows and columns.
        center: Column and row of what stays in place, counted from the outer corner of the first cell.

    Source: rotation of a tensor in pytorch/vision:torchvision/transforms/functional.py.
    """
    rows, columns = hw
    angle = turn_deg.double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = center[0] - columns / 2, center[1] - rows / 2
    # Which cell is nearest may hang on the last digit, so the order of operations is that of the source.
    matrix = torch.stack([cos, -sin, cos * -x - sin * -y + x, sin, cos, sin * -x + cos * -y + y], dim=-1)
    half = past.new_tensor([columns / 2, rows / 2])
    matrix = matrix.to(past.dtype).unflatten(1, (2, 3)).transpose(1, 2) / half
    across = torch.arange(columns, dtype=past.dtype, device=past.device) + (0.5 - columns / 2)
    down = torch.arange(rows, dtype=past.dtype, device=past.device) + (0.5 - rows / 2)
    down, across = torch.meshgrid(down, across, indexing="ij")
    cells = torch.stack([across, down, torch.ones_like(down)], dim=-1).flatten(0, 1)
    return _look_up(past, cells @ matrix, hw, mode="nearest")


def _look_up(
    cells: Float[Tensor, "b q c"], places: Float[Tensor, "b q 2"], hw: tuple[int, int], *, mode: str
) -> Float[Tensor, "b q c"]:
    """Read maps at places (x, y) in -1..1, in float32 at least: a place needs its digits."""
    dtype = torch.promote_types(cells.dtype, torch.float32)
    maps = cells.to(dtype).transpose(1, 2).unflatten(2, hw)
    where = places.to(dtype).unflatten(1, hw)
    found = F.grid_sample(maps, where, mode=mode, padding_mode="zeros", align_corners=False)
    return found.flatten(2).transpose(1, 2).to(cells.dtype)


def _quaternions(pose: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 4"]:
    """w, x, y, z with w >= 0 of rotation matrices, without branches."""
    r = pose[:, :3, :3]
    diagonal = r.diagonal(dim1=1, dim2=2)
    signs = pose.new_tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    sizes = (1 + diagonal @ signs.T).clamp_min(0).sqrt() / 2  # absolute values
    w, x, y, z = sizes.unbind(-1)
    differences = (r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1])
    signed = [torch.copysign(size, sign) for size, sign in zip((x, y, z), differences, strict=True)]
    return torch.stack([w, *signed], dim=-1)
