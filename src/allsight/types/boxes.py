"""Upright boxes in space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor


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

    def select(self, keep: Shaped[Tensor, " n"]) -> Boxes3D:
        """The boxes that `keep` (a boolean mask or indices) picks; for boxes of one row, [k, ...]."""
        return replace(
            self,
            centers_ref_m=self.centers_ref_m[keep],
            sizes_m=self.sizes_m[keep],
            yaw_rad=self.yaw_rad[keep],
            velocities_ref_mps=self.velocities_ref_mps[keep],
            labels=self.labels[keep],
            scores=None if self.scores is None else self.scores[keep],
        )

    def transformed(self, new_from_ref: Float[Tensor, "4 4"]) -> Boxes3D:
        """The same boxes in another frame: rotated about z, moved, mirrored, scaled by one factor.

        Args:
            new_from_ref: Affine map that keeps vertical lines vertical; boxes have no other tilt than yaw.
        """
        matrix = new_from_ref.to(self.centers_ref_m)
        linear, plane = matrix[:3, :3], matrix[:2, :2]
        heading = torch.stack([self.yaw_rad.cos(), self.yaw_rad.sin()], dim=-1) @ plane.T
        scale = torch.linalg.det(linear).abs() ** (1 / 3)
        return replace(
            self,
            centers_ref_m=self.centers_ref_m @ linear.T + matrix[:3, 3],
            sizes_m=self.sizes_m * scale,
            yaw_rad=torch.atan2(heading[..., 1], heading[..., 0]),
            velocities_ref_mps=self.velocities_ref_mps @ plane.T,
        )


torch.export.register_dataclass(Boxes3D, serialized_type_name="allsight.Boxes3D")
