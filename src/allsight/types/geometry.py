"""Batched camera geometry. Transforms name target then source: a_from_c = a_from_b @ b_from_c.

All of a batch's matrices speak of one reference frame per row (for nuScenes the LiDAR at the key frame's
time). Lengths are metres, angles radians, times seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from allsight.types.batches import map_tensors
from allsight.types.errors import DataError
from allsight.types.samples import Rig

MIN_DEPTH_M = 1e-5
"""Points nearer to a camera than this, or behind it, cannot be seen."""


def inverse_affine(matrices: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """Inverses of affine maps (last row 0 0 0 1), in closed form so that they can be exported."""
    linear, offset = matrices[..., :3, :3], matrices[..., :3, 3:]
    first, second, third = linear.unbind(-1)
    # The rows of the inverse are cross products of the columns, divided by the volume they span.
    rows = torch.stack(
        [
            torch.linalg.cross(second, third),
            torch.linalg.cross(third, first),
            torch.linalg.cross(first, second),
        ],
        dim=-2,
    )
    volume = (rows[..., 0, :] * first).sum(-1)
    inverse = rows / volume[..., None, None]
    return torch.cat([torch.cat([inverse, -inverse @ offset], dim=-1), matrices[..., 3:, :]], dim=-2)


@dataclass(frozen=True)
class CameraRig:
    """Where the cameras of each row were.

    World poses and clock times need float64: in float32 a position 2 km from the origin is known to 0.1 mm,
    but a time since 1970 only to two minutes.

    Args:
        img_from_ref: Pixel = dehomogenise(img_from_ref @ [x y z 1]); includes the motion between exposure
            and reference time. Pixel (0, 0) is the outer corner of the first pixel, (0.5, 0.5) its center.
        ego_from_ref: Reference frame to vehicle frame.
        world_from_ref: Reference frame to a frame fixed in the world.
        time_s: Reference time of each row.
        is_present: False for a camera that delivered no picture; None means all did.
        can_bus: Vehicle signals as BEVFormer lays them out (see `models.bevformer.alignment`), absolute
            position and heading; only `compat="official"` reads them, and does without if None.
    """

    img_from_ref: Float[Tensor, "b n 3 4"]
    ego_from_ref: Float[Tensor, "b 4 4"]
    world_from_ref: Float[Tensor, "b 4 4"]
    time_s: Float[Tensor, " b"]
    is_present: Bool[Tensor, "b n"] | None = None
    can_bus: Float[Tensor, "b 18"] | None = None

    def to(self, device: torch.device | str) -> CameraRig:
        return map_tensors(lambda tensor: tensor.to(device), self)

    @property
    def world_from_ego(self) -> Float[Tensor, "b 4 4"]:
        """Pose of the vehicle."""
        return self.world_from_ref @ inverse_affine(self.ego_from_ref)

    def project(
        self, points_ref_m: Float[Tensor, "b p 3"]
    ) -> tuple[Float[Tensor, "b n p 2"], Float[Tensor, "b n p"]]:
        """Pixel coordinates (x, y) and depth of points in every camera.

        Only depths above `MIN_DEPTH_M` can be seen; pixels of others are finite and mean nothing.
        """
        linear, offset = self.img_from_ref[..., :3], self.img_from_ref[..., 3]
        projected = points_ref_m[:, None] @ linear.transpose(-1, -2) + offset[:, :, None]
        depth = projected[..., 2]
        return projected[..., :2] / depth[..., None].clamp_min(MIN_DEPTH_M), depth

    def with_image_affine(self, new_from_img: Float[Tensor, "b n 3 3"]) -> CameraRig:
        """The rig after its pictures were resized, cropped, flipped or rotated.

        Args:
            new_from_img: Map of pixel coordinates (corner convention, so that a flip is x -> width - x).
        """
        return replace(self, img_from_ref=new_from_img.to(self.img_from_ref) @ self.img_from_ref)

    def with_ref_affine(self, new_from_ref: Float[Tensor, "b 4 4"]) -> CameraRig:
        """The rig after the whole scene was turned, mirrored, scaled or moved; pixels stay where they are.

        Boxes go through `Boxes3D.transformed` with the same maps. A constant map leaves motion between frames
        consistent: relative poses become B @ T @ inverse(B) by themselves.
        """
        back = inverse_affine(new_from_ref)
        return replace(
            self,
            img_from_ref=self.img_from_ref @ back[:, None].to(self.img_from_ref),
            ego_from_ref=self.ego_from_ref @ back.to(self.ego_from_ref),
            world_from_ref=self.world_from_ref @ back.to(self.world_from_ref),
        )

    def with_cameras(self, order: Int64[Tensor, " k"]) -> CameraRig:
        """The rig with these of its cameras, in this order."""
        present = None if self.is_present is None else self.is_present[:, order]
        return replace(self, img_from_ref=self.img_from_ref[:, order], is_present=present)


def relative_pose(
    world_from_old: Float[Tensor, "b 4 4"], world_from_new: Float[Tensor, "b 4 4"]
) -> Float[Tensor, "b 4 4"]:
    """old_from_new: where a point of the new reference frame lies in the old one. In float64.

    World positions are large and their difference is small.
    """
    return inverse_affine(world_from_old.double()) @ world_from_new.double()


@dataclass(frozen=True)
class MultiCameraBatch:
    """Pictures of a camera rig, uint8 or normalised floating point, with the rig's geometry.

    Args:
        images: Pictures of one size; smaller ones are padded on the right and below.
        rig: Where the cameras were.
        starts: True where a row begins a stream, so that its past is forgotten; None: where there is a
            state, it is followed.
        valid_hw_px: Height and width of the part of each picture that is no padding; None: all of it.
    """

    images: Shaped[Tensor, "b n 3 h w"]
    rig: CameraRig
    starts: Bool[Tensor, " b"] | None = None
    valid_hw_px: Int64[Tensor, "b n 2"] | None = None

    def to(self, device: torch.device | str) -> MultiCameraBatch:
        return map_tensors(lambda tensor: tensor.to(device), self)

    @classmethod
    def of(
        cls,
        rigs: Sequence[Rig],
        *,
        hw_px: tuple[int, int] | None = None,
        cameras: int | None = None,
        multiple: int = 32,
    ) -> MultiCameraBatch:
        """Collate rigs, with any number of cameras and sizes of pictures.

        Args:
            rigs: One per row.
            hw_px: Size to pad to; None: that of the largest picture. Where results must not depend on which
                rows meet in a batch, give it.
            cameras: Cameras to pad to, the added ones not present; None: those of the largest rig.
            multiple: Both sides are padded up to a multiple of this.
        Raises:
            DataError: No rows or cameras, a picture that does not fit, or matrices that are not finite or
                singular.
        """
        if not rigs or any(not rig.images for rig in rigs):
            raise DataError("camera rig: expected at least one row, and one picture in each; got none")
        for row, rig in enumerate(rigs):
            _check_rig(rig, f"camera rig of row {row}")
        sizes = [image.hw_px for rig in rigs for image in rig.images]
        tallest, widest = (max(size[axis] for size in sizes) for axis in (0, 1))
        height, width = hw_px or (tallest, widest)
        height, width = (-(-side // multiple) * multiple for side in (height, width))
        count = cameras or max(len(rig.images) for rig in rigs)
        if tallest > height or widest > width or any(len(rig.images) > count for rig in rigs):
            most = max(len(rig.images) for rig in rigs)
            raise DataError(
                f"camera rig: {most} pictures of up to {tallest}x{widest} px do not fit into {count} of "
                f"{height}x{width}; raise hw_px or cameras"
            )
        like = rigs[0].images[0].pixels
        images = like.new_zeros((len(rigs), count, 3, height, width))
        img_from_ref = torch.eye(3, 4, dtype=torch.float64).repeat(len(rigs), count, 1, 1)
        present = torch.zeros(len(rigs), count, dtype=torch.bool)
        valid = torch.zeros(len(rigs), count, 2, dtype=torch.int64)
        for row, rig in enumerate(rigs):
            for camera, image in enumerate(rig.images):
                rows, columns = image.hw_px
                images[row, camera, :, :rows, :columns] = image.pixels
                valid[row, camera] = torch.tensor(image.valid_hw_px or image.hw_px)
            img_from_ref[row, : len(rig.images)] = rig.img_from_ref.double()
            present[row, : len(rig.images)] = True
        signals = [rig.can_bus for rig in rigs if rig.can_bus is not None]
        return cls(
            images,
            CameraRig(
                img_from_ref,
                torch.stack([rig.ego_from_ref.double() for rig in rigs]),
                torch.stack([rig.world_from_ref.double() for rig in rigs]),
                torch.tensor([rig.time_s for rig in rigs], dtype=torch.float64),
                None if bool(present.all()) else present,
                torch.stack(signals).double() if len(signals) == len(rigs) else None,
            ),
            valid_hw_px=None if bool((valid == torch.tensor([height, width])).all()) else valid,
        )


def _check_rig(rig: Rig, where: str) -> None:
    if rig.img_from_ref.shape[0] != len(rig.images):
        raise DataError(
            f"{where}: expected a matrix img_from_ref per picture, got {rig.img_from_ref.shape[0]} for "
            f"{len(rig.images)} pictures"
        )
    names = rig.camera_names or tuple(str(camera) for camera in range(len(rig.images)))
    for name, matrix in zip(names, rig.img_from_ref.double(), strict=True):
        if not bool(matrix.isfinite().all()) or abs(float(torch.linalg.det(matrix[:, :3]))) < 1e-9:
            raise DataError(
                f"{where}: camera {name}: img_from_ref is singular or not finite; check its intrinsics"
            )
    for name, matrix in (("ego_from_ref", rig.ego_from_ref), ("world_from_ref", rig.world_from_ref)):
        if not bool(matrix.isfinite().all()) or abs(float(torch.linalg.det(matrix.double()))) < 1e-9:
            raise DataError(f"{where}: {name} is singular or not finite; give a pose of every frame")
