"""Quaternions (w, x, y, z) and rigid motions as 4 x 4 matrices, float64. Names say target, then source."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64


def rotations(quaternions_wxyz: Float[np.ndarray, "*n 4"]) -> Float64[np.ndarray, "*n 3 3"]:
    """Rotation matrices; quaternions are normalised first."""
    q = np.asarray(quaternions_wxyz, dtype=np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float64[np.ndarray, " 4"]:
    """The quaternion of a rotation matrix, w not negative."""
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(rotation, dtype=np.float64).tolist()
    # Each row holds the quaternion times 4 of its largest member, which is far from zero (Shepperd's method).
    w, x, y, z = 1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i
    rows = {
        w: (w, h - f, c - g, d - b),
        x: (h - f, x, b + d, c + g),
        y: (c - g, b + d, y, f + h),
        z: (d - b, c + g, f + h, z),
    }
    q = np.array(rows[max(rows)])
    q /= np.sqrt(q @ q)
    return -q if q[0] < 0 else q


def poses(
    translations_m: Float[np.ndarray, "*n 3"], quaternions_wxyz: Float[np.ndarray, "*n 4"]
) -> Float64[np.ndarray, "*n 4 4"]:
    """Motions that turn, then shift."""
    matrix = np.zeros((*np.shape(translations_m)[:-1], 4, 4))
    matrix[..., :3, :3] = rotations(quaternions_wxyz)
    matrix[..., :3, 3] = translations_m
    matrix[..., 3, 3] = 1
    return matrix


def inverse(pose: Float[np.ndarray, "*n 4 4"]) -> Float64[np.ndarray, "*n 4 4"]:
    """The inverse of rigid motions."""
    turned = np.swapaxes(pose[..., :3, :3], -1, -2)
    out = np.zeros_like(pose, dtype=np.float64)
    out[..., :3, :3] = turned
    out[..., :3, 3] = -(turned @ pose[..., :3, 3, None])[..., 0]
    out[..., 3, 3] = 1
    return out


def heading(rotation: Float[np.ndarray, "*n 3 3"]) -> Float64[np.ndarray, "*n"]:
    """Direction of the turned x axis in the ground plane, radians from x.

    Source: nutonomy/nuscenes-devkit:python-sdk/nuscenes/eval/common/utils.py, `quaternion_yaw`.
    """
    return np.asarray(np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0]))


def turns(yaw_rad: Float[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n 3 3"]:
    """Rotations about z."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    zero, one = np.zeros_like(cos), np.ones_like(cos)
    rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def moved(pose: Float[np.ndarray, "4 4"], points_m: Float[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Points after a motion."""
    return points_m @ pose[:3, :3].T + pose[:3, 3]


def is_rigid(pose: Float[np.ndarray, "4 4"], tolerance: float = 1e-3) -> bool:
    """Whether a matrix is a finite rotation and shift."""
    turn = pose[:3, :3]
    return bool(
        np.isfinite(pose).all()
        and np.abs(turn @ turn.T - np.eye(3)).max() < tolerance
        and np.linalg.det(turn) > 0
        and np.abs(pose[3] - [0, 0, 0, 1]).max() < tolerance
    )
