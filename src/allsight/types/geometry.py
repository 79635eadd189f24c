"""Batched camera geometry. Transforms name target then source: a_from_c = a_from_b @ b_from_c.

All of a batch's matrices speak of one reference frame per row (for nuScenes the LiDAR at the key frame's
time). Lengths are metres, angles radians, times seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from allsight.types.batches import map_tensors


@dataclass(frozen=True)
class CameraRig:
    """Where the cameras of each row were.

    Args:
        img_from_ref: Pixel = dehomogenise(img_from_ref @ [x y z 1]); includes the motion between exposure
            and reference time.
        ego_from_ref: Reference frame to vehicle frame.
        world_from_ref: Reference frame to a frame fixed in the world.
        time_s: Reference time of each row.
        is_present: False for a camera that delivered no picture; None means all did.
    """

    img_from_ref: Float[Tensor, "b n 3 4"]
    ego_from_ref: Float[Tensor, "b 4 4"]
    world_from_ref: Float[Tensor, "b 4 4"]
    time_s: Float[Tensor, " b"]
    is_present: Bool[Tensor, "b n"] | None = None

    def to(self, device: torch.device | str) -> CameraRig:
        return map_tensors(lambda tensor: tensor.to(device), self)

    def project(
        self, points_ref_m: Float[Tensor, "b p 3"]
    ) -> tuple[Float[Tensor, "b n p 2"], Float[Tensor, "b n p"]]:
        """Pixel coordinates (x, y) and depth of points in every camera; only depths > 0 can be seen."""
        homogeneous = torch.cat([points_ref_m, torch.ones_like(points_ref_m[..., :1])], dim=-1)
        projected = torch.einsum("bnij,bpj->bnpi", self.img_from_ref, homogeneous)
        depth = projected[..., 2]
        safe = torch.where(depth.abs() < 1e-6, torch.full_like(depth, 1e-6), depth)
        return projected[..., :2] / safe[..., None], depth


@dataclass(frozen=True)
class MultiCameraBatch:
    """Pictures of a camera rig, uint8 or normalised floating point, with the rig's geometry."""

    images: Shaped[Tensor, "b n 3 h w"]
    rig: CameraRig

    def to(self, device: torch.device | str) -> MultiCameraBatch:
        return map_tensors(lambda tensor: tensor.to(device), self)


@dataclass(frozen=True)
class Boxes3D:
    """Upright boxes in the reference frame.

    Args:
        centers_ref_m: x, y, z of the box's middle.
        sizes_m: Length (along heading), width, height.
        yaw_rad: Heading about the reference frame's z axis, 0 along x.
        velocities_ref_mps: x, y; NaN where unknown.
        labels: Class index.
        scores: Confidence in 0..1; None for truth.
    """

    centers_ref_m: Float[Tensor, "*b k 3"]
    sizes_m: Float[Tensor, "*b k 3"]
    yaw_rad: Float[Tensor, "*b k"]
    velocities_ref_mps: Float[Tensor, "*b k 2"]
    labels: Int64[Tensor, "*b k"]
    scores: Float[Tensor, "*b k"] | None = None

    def corners_ref_m(self) -> Float[Tensor, "*b k 8 3"]:
        """The eight corners, x sign slowest, z sign fastest."""
        signs = torch.tensor(
            [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)],
            dtype=self.sizes_m.dtype,
            device=self.sizes_m.device,
        )
        local = self.sizes_m[..., None, :] * signs
        cos, sin = self.yaw_rad.cos()[..., None], self.yaw_rad.sin()[..., None]
        x = cos * local[..., 0] - sin * local[..., 1]
        y = sin * local[..., 0] + cos * local[..., 1]
        return torch.stack([x, y, local[..., 2]], dim=-1) + self.centers_ref_m[..., None, :]
