"""Rays against solids: where each of many rays first meets an ellipsoid, a cone, a polyhedron or a torus.

A ray is origin + t * direction. Origins and directions are triples; either the origin is shared and its
members are floats (rays of a camera), or the direction is (rays to the sun), so that the shared part costs
nothing. The members of the other are arrays that broadcast against each other.
Every solid has `bounds` (opposite corners of a box around it, in the frame of its object: x to the right,
y away from the viewer, z up) and `hit(origin, direction)`: the first t of every ray (FAR where it misses)
and, for polyhedra, the number of the face met there. Curved ones have `normals(point)`: outward unit
normals at points of the surface.

Only + - * / and square roots are applied to arrays: these are exactly rounded on every machine, and so the
pictures are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np

Real = float | int
Number = Any
"""A float, or an array of float32."""
Triple = tuple[Number, Number, Number]
Point = tuple[Real, Real, Real]

FAR = np.float32(1e9)
"""The t of a ray that misses."""

_TINY = np.float32(1e-7)


@dataclass(frozen=True)
class Ellipsoid:
    """Ellipsoid with axes along x, y and z."""

    center: Point
    radii: Point

    @cached_property
    def bounds(self) -> tuple[Point, Point]:
        (x, y, z), (a, b, c) = self.center, self.radii
        return (x - a, y - b, z - c), (x + a, y + b, z + c)

    def hit(self, origin: Triple, direction: Triple) -> tuple[np.ndarray, None]:
        ox, oy, oz = ((o - c) * (1.0 / r) for o, c, r in zip(origin, self.center, self.radii, strict=True))
        dx, dy, dz = (d * (1.0 / r) for d, r in zip(direction, self.radii, strict=True))
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        c = ox * ox + oy * oy + oz * oz - 1.0
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        return np.where((root > 0) & (t > 0), t, FAR), None

    def normals(self, point: Triple) -> Triple:
        x, y, z = ((p - c) * (1.0 / (r * r)) for p, c, r in zip(point, self.center, self.radii, strict=True))
        length = 1.0 / np.sqrt(x * x + y * y + z * z)
        return x * length, y * length, z * length


@dataclass(frozen=True)
class Frustum:
    """Cone, truncated cone or cylinder with its two lids, along z or (a wheel) along y.

    `low` and `high` are the places of the lids along the axis, `radius_low` and `radius_high` their radii;
    `across` is where the axis stands: (x, y) for an axis along z, (x, z) for one along y.
    """

    across: tuple[Real, Real]
    low: Real
    high: Real
    radius_low: Real
    radius_high: Real
    along: str = "z"

    def _turn(self, triple: Sequence) -> tuple:
        """Put the axis last; its own inverse."""
        x, y, z = triple
        return (x, z, y) if self.along == "y" else (x, y, z)

    @cached_property
    def bounds(self) -> tuple[Point, Point]:
        (u, v), r = self.across, max(self.radius_low, self.radius_high)
        return self._turn((u - r, v - r, self.low)), self._turn((u + r, v + r, self.high))

    def hit(self, origin: Triple, direction: Triple) -> tuple[np.ndarray, None]:
        ox, oy, oz = self._turn(origin)
        dx, dy, dz = self._turn(direction)
        ox, oy = ox - self.across[0], oy - self.across[1]
        slope = (self.radius_high - self.radius_low) / (self.high - self.low)
        at_origin = self.radius_low + slope * (oz - self.low)
        kz = slope * dz
        a = dx * dx + dy * dy - kz * kz
        b = ox * dx + oy * dy - at_origin * kz
        c = ox * ox + oy * oy - at_origin * at_origin
        root = b * b - a * c
        s = np.sqrt(np.maximum(root, 0))
        inverse = 1.0 / a
        found: list[np.ndarray] = []
        # The near sheet of a cylinder is the first; of a cone it may be the cone's mirror image.
        near, far = (-b - s) * inverse, (s - b) * inverse
        for t in (near,) if slope == 0 else (near, far):
            z = oz + t * dz
            fine = (root > 0) & (t > 0) & (z >= self.low) & (z <= self.high)
            found.append(np.where(fine, t, FAR))
        # Rays come in, never out, through the lid that they meet first.
        lids = ((self.low, self.radius_low), (self.high, self.radius_high))
        if isinstance(oz, np.ndarray):
            lids = lids[:1] if dz > 0 else lids[1:]
        else:
            lids = lids[:1] if oz < self.low else lids[1:] if oz > self.high else ()
        for height, radius in lids:
            if radius > 0:
                t = (height - oz) / dz
                x, y = ox + t * dx, oy + t * dy
                found.append(np.where((x * x + y * y < radius * radius) & (t > 0), t, FAR))
        return reduce(np.minimum, found), None

    def normals(self, point: Triple) -> Triple:
        x, y, z = self._turn(point)
        x, y = x - self.across[0], y - self.across[1]
        slope = (self.radius_high - self.radius_low) / (self.high - self.low)
        out = np.sqrt(x * x + y * y)
        # What lies well within the side is on a lid.
        lid = out < self.radius_low + slope * (z - self.low) - 1e-3 * max(self.radius_low, self.radius_high)
        side = 1.0 / math.sqrt(1.0 + slope * slope)
        length = np.where(lid, 0, side / (out + 1e-9))
        end = np.where(z > 0.5 * (self.low + self.high), np.float32(1), np.float32(-1))
        return self._turn((x * length, y * length, np.where(lid, end, np.float32(-slope * side))))


@dataclass(frozen=True)
class Polyhedron:
    """Convex polyhedron: the points below all its planes (unit normal x y z, distance from the origin)."""

    planes: tuple[tuple[float, float, float, float], ...]
    corners: tuple[Point, ...]

    @cached_property
    def bounds(self) -> tuple[Point, Point]:
        xs, ys, zs = zip(*self.corners, strict=True)
        return (min(xs), min(ys), min(zs)), (max(xs), max(ys), max(zs))

    def hit(self, origin: Triple, direction: Triple) -> tuple[np.ndarray, np.ndarray]:
        enter: Number = -FAR
        leave: Number = FAR
        face = np.zeros(np.broadcast(*direction).shape, dtype=np.uint8)
        for number, (nx, ny, nz, height) in enumerate(self.planes):
            toward = _dot((nx, ny, nz), direction)
            gap = height - _dot((nx, ny, nz), origin)
            if isinstance(toward, np.ndarray):
                # Seen from outside a plane is a way in, from inside a way out, for all rays alike; a ray that
                # never crosses it comes in, or goes out, too far away to count.
                if gap >= 0:
                    leave = np.minimum(leave, gap / np.maximum(toward, _TINY))
                    continue
                t = gap / np.minimum(toward, -_TINY)
                np.copyto(face, np.uint8(number), where=t > enter)
                enter = np.maximum(enter, t)
            elif toward < 0:
                enter = np.maximum(enter, gap * (1.0 / toward))
            elif toward > 0:
                leave = np.minimum(leave, gap * (1.0 / toward))
            else:
                leave = np.where(gap > 0, leave, -FAR)
        return np.where((enter < leave) & (enter > 0), enter, FAR), face


def _dot(normal: Point, vector: Triple) -> Number:
    total: Number | None = None
    for n, v in zip(normal, vector, strict=True):
        if n != 0:
            term = v if n == 1 else n * v
            total = term if total is None else total + term
    assert total is not None, "a plane without a normal"
    return total


@dataclass(frozen=True)
class Torus:
    """Ring that stands upright: its axis is along y."""

    center: Point
    major: float
    minor: float

    @cached_property
    def bounds(self) -> tuple[Point, Point]:
        (x, y, z), r, m = self.center, self.major + self.minor, self.minor
        return (x - r, y - m, z - r), (x + r, y + m, z + r)

    def hit(self, origin: Triple, direction: Triple) -> tuple[np.ndarray, None]:
        ox, oy, oz = (o - c for o, c in zip(origin, self.center, strict=True))
        dx, dy, dz = direction
        length = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        around = self.major + self.minor
        c = ox * ox + oy * oy + oz * oz - around * around
        root = b * b - length * c
        inverse = 1.0 / np.sqrt(length)
        start = (-b - np.sqrt(np.maximum(root, 0))) / length
        t = np.maximum(start, 0)
        for _ in range(_TORUS_STEPS):
            t = t + self._distance(ox + t * dx, oy + t * dy, oz + t * dz) * inverse
        near = self._distance(ox + t * dx, oy + t * dy, oz + t * dz) < 0.02 * self.minor
        end = (-b + np.sqrt(np.maximum(root, 0))) / length
        return np.where((root > 0) & near & (t < end), t, FAR), None

    def _distance(self, x: Number, y: Number, z: Number) -> Number:
        q = np.sqrt(x * x + z * z) - self.major
        return np.sqrt(q * q + y * y) - self.minor

    def normals(self, point: Triple) -> Triple:
        x, y, z = (p - c for p, c in zip(point, self.center, strict=True))
        rim = np.sqrt(x * x + z * z) + 1e-9
        q = (rim - self.major) / rim
        nx, nz = x * q, z * q
        length = 1.0 / np.sqrt(nx * nx + y * y + nz * nz + 1e-12)
        return nx * length, y * length, nz * length


_TORUS_STEPS = 12

Solid = Ellipsoid | Frustum | Polyhedron | Torus


def box(low: Point, high: Point) -> Polyhedron:
    """Box between two corners."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    planes = (
        (0.0, 0.0, 1.0, float(z1)),
        (0.0, -1.0, 0.0, -float(y0)),
        (1.0, 0.0, 0.0, float(x1)),
        (-1.0, 0.0, 0.0, -float(x0)),
        (0.0, 1.0, 0.0, float(y1)),
        (0.0, 0.0, -1.0, -float(z0)),
    )
    return Polyhedron(planes, tuple((x, y, z) for x in (x0, x1) for y in (y0, y1) for z in (z0, z1)))


def hull(corners: Sequence[Point]) -> Polyhedron:
    """Convex hull of a few points, by trying all planes through three of them."""
    planes: list[tuple[float, float, float, float]] = []
    for i in range(len(corners)):
        for j in range(i + 1, len(corners)):
            for k in range(j + 1, len(corners)):
                u = [corners[j][axis] - corners[i][axis] for axis in range(3)]
                v = [corners[k][axis] - corners[i][axis] for axis in range(3)]
                n = (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
                size = math.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2)
                if size < 1e-9:
                    continue
                for sign in (1.0 / size, -1.0 / size):
                    normal = (n[0] * sign, n[1] * sign, n[2] * sign)
                    height = sum(a * b for a, b in zip(normal, corners[i], strict=True))
                    outside = (
                        sum(a * b for a, b in zip(normal, c, strict=True)) - height > 1e-7 for c in corners
                    )
                    if not any(outside):
                        nx, ny, nz, top = (round(float(value), 6) + 0.0 for value in (*normal, height))
                        plane = (nx, ny, nz, top)
                        if plane not in planes:
                            planes.append(plane)
    return Polyhedron(tuple(planes), tuple(corners))
