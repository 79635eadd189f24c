"""Camera rigs for tests: rings of pinhole cameras, and poses that turn and move."""

import math

import torch

from allsight.types import CameraRig, MultiCameraBatch


def turned(yaw_rad, x=0.0, y=0.0, z=0.0):
    """new_from_old: turn about z, then move."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return torch.tensor(
        [[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=torch.float64
    )


def ring(cameras=6, width=96, height=64, focal=70.0, lift_m=1.6):
    """img_from_ref of cameras around the origin; the first looks along +y."""
    matrices = []
    for camera in range(cameras):
        forward = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        ref_from_cam = torch.eye(4, dtype=torch.float64)
        ref_from_cam[:3, 0] = torch.tensor([1.0, 0, 0])
        ref_from_cam[:3, 1] = torch.tensor([0, 0, -1.0])
        ref_from_cam[:3, 2] = forward[:3]
        ref_from_cam[2, 3] = lift_m
        ref_from_cam = turned(-2 * math.pi * camera / cameras) @ ref_from_cam
        intrinsic = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]).double()
        matrices.append(intrinsic @ torch.linalg.inv(ref_from_cam)[:3])
    return torch.stack(matrices)


def rig_of(matrices, world_from_ref=None, time_s=0.0):
    eye = torch.eye(4, dtype=torch.float64)[None]
    world = eye if world_from_ref is None else world_from_ref[None]
    return CameraRig(matrices[None], eye, world, torch.tensor([time_s], dtype=torch.float64))


def frame_of(poses, *, cameras=4, height=32, width=48, times_s=None, seed=0, dtype=torch.float32):
    """A frame whose row i stands at poses[i] (world_from_ref), with random pictures."""
    rows = len(poses)
    images = torch.randn(rows, cameras, 3, height, width, generator=torch.Generator().manual_seed(seed))
    eye = torch.eye(4, dtype=torch.float64).expand(rows, 4, 4)
    matrices = ring(cameras, width, height, 20.0).expand(rows, -1, -1, -1)
    times = torch.tensor(times_s if times_s is not None else [0.0] * rows, dtype=torch.float64)
    return MultiCameraBatch(images.to(dtype), CameraRig(matrices, eye, torch.stack(list(poses)), times))


def row_of(frame, row):
    """One row of a frame as a batch of its own."""
    from allsight.types.batches import map_tensors

    return map_tensors(lambda tensor: tensor[row : row + 1], frame)
