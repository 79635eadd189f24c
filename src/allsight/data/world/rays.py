"""The rays of a picture in the frame of one object, and the ground as they see it.

A ray's direction is the sum of a part that depends on its column and a part that depends on its row. So
whatever is linear in it costs one addition of a row and a column, however many terms it has.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float32, Float64

Point = tuple[float, float, float]


class Stand:
    """Where an object stands and how it is turned, seen from an eye over the origin.

    Args:
        height_m: Of the eye over the ground.
        place_m: Where on the ground the object stands, x and y.
        turn_rad: Its turn about the vertical.
        scale_m: Its unit.
    """

    def __init__(
        self, height_m: float, place_m: tuple[float, float], turn_rad: float, scale_m: float
    ) -> None:
        self.height_m, self.place_m, self.turn_rad, self.scale_m = height_m, place_m, turn_rad, scale_m
        self.cos, self.sin, self.unit = math.cos(turn_rad), math.sin(turn_rad), 1.0 / scale_m
        x, y = place_m
        self.eye: Point = self.turned((-x * self.unit, -y * self.unit, height_m * self.unit))
        """The eye in the object's frame and units."""

    def turned(self, vector: Point) -> Point:
        """A vector of the world in the object's frame (not scaled)."""
        x, y, z = vector
        return self.cos * x + self.sin * y, self.cos * y - self.sin * x, z

    def borders(
        self, a: Float64[np.ndarray, " k"], b: Float64[np.ndarray, " k"], far: Float64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, "3 k 1"]:
        """Borders a * x + b * y <= far on the ground of the object's frame, as weights of the directions of
        rays that look down: the ground is inside where their sum is at most 0."""
        # In the frame of the world; divided by the depth of the ground it is linear in the direction.
        weights = np.empty((3, len(a), 1), dtype=np.float32)
        x, y = self.place_m
        a, b = (a * self.cos - b * self.sin) * self.unit, (a * self.sin + b * self.cos) * self.unit
        weights[:, :, 0] = a, b, (far + a * x + b * y) * (1.0 / self.height_m)
        return weights


class Rays:
    """Rays of some rows and columns of a picture, as an object meets them.

    Point = eye + t * direction, in the object's frame (x to its right, y away from its face, z up) and in
    its units; t is depth in metres.

    Args:
        across, ahead, up: Directions in the frame of the world, by column, by row and by row.
        stand: The object's.
    """

    __slots__ = ("across", "ahead", "stand", "up")

    def __init__(
        self,
        across: Float32[np.ndarray, "1 w"],
        ahead: Float32[np.ndarray, "h 1"],
        up: Float32[np.ndarray, "h 1"],
        stand: Stand,
    ) -> None:
        self.across, self.ahead, self.up, self.stand = across, ahead, up, stand

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.ahead), self.across.shape[1]

    def window(self, top: int, left: int, bottom: int, right: int) -> Rays:
        """The rays of some of these rows and columns."""
        return Rays(self.across[:, left:right], self.ahead[top:bottom], self.up[top:bottom], self.stand)

    def along(self, x: float, y: float, z: float) -> Float32[np.ndarray, "h w_or_1"]:
        """The product of every direction with this vector; one column where all columns have the same."""
        cos, sin, unit = self.stand.cos, self.stand.sin, self.stand.unit
        rows = self.up * (z * unit)
        if x == 0 and y == 0:
            return rows
        rows += self.ahead * ((x * sin + y * cos) * unit)
        return self.across * ((x * cos - y * sin) * unit) + rows

    def weighed(
        self, weights: Float64[np.ndarray, "k 3"]
    ) -> tuple[Float32[np.ndarray, "k 1 w"], Float32[np.ndarray, "k h 1"]]:
        """The products of every direction with some vectors, as parts to be added: of columns and of rows."""
        cos, sin, unit = self.stand.cos, self.stand.sin, self.stand.unit
        x, y, z = (weights * unit).T
        turned = np.empty((3, len(weights), 1, 1), dtype=np.float32)
        turned[:, :, 0, 0] = x * cos - y * sin, x * sin + y * cos, z
        return turned[0] * self.across, turned[1] * self.ahead + turned[2] * self.up

    def squares(self, x: float, y: float, z: float) -> Float32[np.ndarray, "h w"]:
        """The weighted sum of the squares of every direction's members."""
        cos, sin, unit = self.stand.cos, self.stand.sin, self.stand.unit**2
        rows = self.ahead * self.ahead * ((x * sin * sin + y * cos * cos) * unit)
        rows += self.up * self.up * (z * unit)
        total = self.across * self.across * ((x * cos * cos + y * sin * sin) * unit) + rows
        if x != y:
            total += self.across * (self.ahead * (2.0 * sin * cos * (x - y) * unit))
        return total

    def directions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [h, w], y [h, w] and z [h, 1] of every direction."""
        return self.along(1, 0, 0), self.along(0, 1, 0), self.along(0, 0, 1)

    def points(
        self, number: np.ndarray, t: Float32[np.ndarray, " n"]
    ) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """x, y and z where some rays, numbered row by row, are at these t."""
        cos, sin, (x, y, z) = self.stand.cos, self.stand.sin, self.stand.eye
        rows = number // self.across.shape[1]
        across = self.across.ravel().take(number - rows * self.across.shape[1])
        ahead, t = self.ahead.take(rows), t * self.stand.unit
        at = x + t * (across * cos + ahead * sin), y + t * (ahead * cos - across * sin)
        return *at, z + t * self.up.take(rows)

    def ground(self) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """x and y of the places on the ground that the rays meet; all of them must look down."""
        depth = self.stand.height_m / -self.up
        (x, y, _), (dx, dy, _) = self.stand.eye, self.directions()
        return x + dx * depth, y + dy * depth

    def inside(self, borders: Float32[np.ndarray, "3 k 1"]) -> Bool[np.ndarray, "h w"]:
        """Whether each ray meets the ground inside all of some borders (of `Stand.borders`)."""
        a, b, c = borders
        rows = b * self.ahead[:, 0] + c * self.up[:, 0]
        columns = a * self.across
        return (columns[:, None, :] + rows[:, :, None]).max(axis=0) <= 0
