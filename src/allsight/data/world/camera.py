"""The camera of a picture: a pinhole at some height over the ground, looking ahead and a little down.

World frame: x to the right, y ahead, z up, metres, the ground at z = 0, the camera over the origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Camera:
    """Pinhole camera for square pictures.

    Args:
        size_px: Side of the picture.
        focal: Focal length as a multiple of the side.
        height_m: Height over the ground.
        pitch_rad: How far it looks down; 0 is level.
    """

    size_px: int
    focal: float
    height_m: float
    pitch_rad: float

    @property
    def focal_px(self) -> float:
        return self.focal * self.size_px

    @property
    def horizon_px(self) -> float:
        """Row of the horizon, counted from the top; may lie outside the picture."""
        return self.size_px / 2 - self.focal_px * math.tan(self.pitch_rad)

    def project(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Column and row in pixels and depth along the optical axis of a point of the world."""
        cos, sin = math.cos(self.pitch_rad), math.sin(self.pitch_rad)
        down = self.height_m - z
        depth = y * cos + down * sin
        row = down * cos - y * sin
        scale = self.focal_px / max(depth, 1e-3)
        return self.size_px / 2 + x * scale, self.size_px / 2 + row * scale, depth

    @property
    def matrix(self) -> np.ndarray:
        """From homogeneous points of the world to (column, row, 1) * depth [3, 4]."""
        cos, sin, f, middle = (
            math.cos(self.pitch_rad),
            math.sin(self.pitch_rad),
            self.focal_px,
            self.size_px / 2,
        )
        depth = np.array([0.0, cos, -sin, sin * self.height_m])
        row = np.array([0.0, -sin, -cos, cos * self.height_m])
        return np.stack([np.array([f, 0.0, 0.0, 0.0]) + middle * depth, f * row + middle * depth, depth])

    def windows(self, points: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Pixels around groups of points.

        Args:
            points: (column, row, 1) * depth [groups, points, 3].
        Returns:
            Top, left, bottom, right of each group, inside the picture and not empty.
        """
        places = points[..., :2] / np.maximum(points[..., 2:], 1e-3)
        low = np.minimum(np.maximum(np.floor(places.min(axis=1)), 0), self.size_px - 1)
        high = np.maximum(np.minimum(np.ceil(places.max(axis=1)), self.size_px), low + 1)
        edges = np.concatenate([low, high], axis=1).astype(int).tolist()
        return [(top, left, bottom, right) for left, top, right, bottom in edges]

    @lru_cache(maxsize=4)  # noqa: B019 (cameras are small values, and few are kept)
    def rays(self, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions of `samples` x `samples` rays a pixel, not normalised: t along them is depth.

        Returns:
            x as one row [1, size * samples]; y and z as columns [size * samples, 1].
        """
        steps = (np.arange(self.size_px * samples, dtype=np.float32) + 0.5) * (1.0 / samples)
        plane = (steps - self.size_px / 2) * (1.0 / self.focal_px)
        cos, sin = math.cos(self.pitch_rad), math.sin(self.pitch_rad)
        return plane[None, :], (cos - plane * sin)[:, None], (-sin - plane * cos)[:, None]
