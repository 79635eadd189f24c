"""Rays against solids: where each of many rays first meets an ellipsoid, a cone, a polyhedron or a torus.

Every solid has `bounds` (opposite corners of a box around it, in the frame of its object) and `hit(rays)`:
the first t of every ray (FAR where it misses) and, for polyhedra, the number of the face met there. Curved
ones have `normals(point)`: outward unit normals at points of the surface.
Their convex hull is told by `knobs`, ellipsoids (down to points) of which it is the hull, and `edges`,
directions such that the outline of any shadow of it is made of shadows of these (of round ones: closely
enough). A torus has a hole, so it also says which lines from the ground it `stops`.

Only + - * / and square roots are applied to arrays: these are exactly rounded on every machine, and so the
pictures are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate, combinations, pairwise
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from allsight.data.world.rays import Rays

Real = float | int
Number = Any
"""A float, or an array of float32."""
Triple = tuple[Number, Number, Number]
Point = tuple[Real, Real, Real]

Knob = tuple[Point, Point]
"""Center and radii along x, y and z of an ellipsoid; a disc or a point has radii of 0."""

FAR = np.float32(1e9)
"""The t of a ray that misses."""


def _circle(places: int) -> list[tuple[float, float]]:
    """Points evenly around a circle of radius 1."""
    turns = [2 * math.pi * (k + 0.5) / places for k in range(places)]
    return [(math.cos(turn), math.sin(turn)) for turn in turns]


ROUND_ABOUT: tuple[Point, ...] = tuple((x, y, 0.0) for x, y in _circle(20)[:10])
"""Edges evenly round about, for round solids: a shadow's outline has twice as many corners."""


@dataclass(frozen=True)
class Ellipsoid:
    """Ellipsoid with axes along x, y and z."""

    center: Point
    radii: Point

    @cached_property
    def bounds(self) -> tuple[Point, Point]:
        (x, y, z), (a, b, c) = self.center, self.radii
        return (x - a, y - b, z - c), (x + a, y + b, z + c)

    def hit(self, rays: Rays) -> tuple[np.ndarray, None]:
        offset = [e - c for e, c in zip(rays.stand.eye, self.center, strict=True)]
        u, v, w = (1.0 / (r * r) for r in self.radii)
        a = rays.squares(u, v, w)
        b = rays.along(offset[0] * u, offset[1] * v, offset[2] * w)
        c = offset[0] ** 2 * u + offset[1] ** 2 * v + offset[2] ** 2 * w - 1.0
        root = b * b
        root -= a * c
        t = np.sqrt(np.maximum(root, 0))
        t += b
        t /= -a
        return np.where((root > 0) & (t > 0), t, FAR), None

    def normals(self, point: Triple) -> Triple:
        x, y, z = ((p - c) * (1.0 / (r * r)) for p, c, r in zip(point, self.center, self.radii, strict=True))
        length = 1.0 / np.sqrt(x * x + y * y + z * z)
        return x * length, y * length, z * length

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """It is its own and only knob."""
        return ((self.center, self.radii),)

    edges: ClassVar[tuple[Point, ...]] = ROUND_ABOUT


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

    def hit(self, rays: Rays) -> tuple[np.ndarray, None]:
        ox, oy, oz = self._turn(rays.stand.eye)
        ox, oy = ox - self.across[0], oy - self.across[1]
        slope = (self.radius_high - self.radius_low) / (self.high - self.low)
        at_eye = self.radius_low + slope * (oz - self.low)
        a = rays.squares(*self._turn((1.0, 1.0, -slope * slope)))
        b = rays.along(*self._turn((ox, oy, -slope * at_eye)))
        dz = rays.along(*self._turn((0.0, 0.0, 1.0)))
        root = b * b
        root -= a * (ox * ox + oy * oy - at_eye * at_eye)
        s = np.sqrt(np.maximum(root, 0))
        crosses = root > 0
        found: list[np.ndarray] = []
        # The near crossing is the first, but for steep rays: these may cross the cone's mirror image before.
        for sign in (-1.0, 1.0) if slope != 0 and a.min() <= 0 else (-1.0,):
            t = s * sign
            t -= b
            t /= a
            z = t * dz
            z += oz
            fine = crosses & (t > 0) & (z >= self.low) & (z <= self.high)
            found.append(np.where(fine, t, FAR))
        # Rays come in, never out, through the lid that they meet first.
        lids = ((self.low, self.radius_low), (self.high, self.radius_high))
        for height, radius in lids[:1] if oz < self.low else lids[1:] if oz > self.high else ():
            if radius > 0:
                t = (height - oz) / dz
                out = rays.squares(*self._turn((1.0, 1.0, 0.0))) * t
                out += rays.along(*self._turn((2 * ox, 2 * oy, 0.0)))
                within = (out * t < radius * radius - ox * ox - oy * oy) & (t > 0)
                found.append(np.where(within, t, FAR))
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

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Its two lids."""
        lids = ((self.low, self.radius_low), (self.high, self.radius_high))
        return tuple((self._turn((*self.across, at)), self._turn((r, r, 0.0))) for at, r in lids)

    @cached_property
    def edges(self) -> tuple[Point, ...]:
        """Around about, and lines down the side."""
        wider, taller = self.radius_high - self.radius_low, self.high - self.low
        down = _circle(10) if wider else [(1.0, 0.0)]
        return ROUND_ABOUT + tuple(self._turn((wider * x, wider * y, taller)) for x, y in down)


@dataclass(frozen=True)
class Polyhedron:
    """Convex polyhedron: the points below all its planes (unit normal x y z, distance from the origin)."""

    planes: tuple[tuple[float, float, float, float], ...]
    corners: tuple[Point, ...]

    @cached_property
    def bounds(self) -> tuple[Point, Point]:
        xs, ys, zs = zip(*self.corners, strict=True)
        return (min(xs), min(ys), min(zs)), (max(xs), max(ys), max(zs))

    def hit(self, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
        return self._faces.near(rays).first()

    @cached_property
    def _faces(self) -> Faces:
        return Faces((self,))

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Its corners."""
        return tuple((corner, (0.0, 0.0, 0.0)) for corner in self.corners)

    @cached_property
    def edges(self) -> tuple[Point, ...]:
        """Directions of the edges, parallel ones once."""
        on = [
            {n for n, (a, b, c, h) in enumerate(self.planes) if abs(a * x + b * y + c * z - h) < 1e-5}
            for x, y, z in self.corners
        ]
        found: list[Point] = []
        for (first, start), (second, end) in combinations(zip(on, self.corners, strict=True), 2):
            if len(first & second) >= 2:
                x, y, z = (b - a for a, b in zip(start, end, strict=True))
                length = math.sqrt(x * x + y * y + z * z)
                x, y, z = x / length, y / length, z / length
                if all(abs(x * u + y * v + z * w) < 1 - 1e-9 for u, v, w in found):
                    found.append((x, y, z))
        return tuple(found)


class Faces:
    """The planes of some polyhedra of one object, for rays to meet all of them at once.

    Attributes:
        spans: Of each polyhedron, where its planes are.
    """

    def __init__(self, solids: Sequence[Polyhedron]) -> None:
        planes = np.array([plane for solid in solids for plane in solid.planes], dtype=float)
        self._normals, self._heights = planes[:, :3].copy(), planes[:, 3].copy()
        ends = [0, *accumulate(len(solid.planes) for solid in solids)]
        self.spans = [slice(first, after) for first, after in pairwise(ends)]

    def near(self, rays: Rays) -> Nearness:
        """How near the planes are to these rays."""
        gaps = self._heights - (self._normals * rays.stand.eye).sum(axis=1)
        gaps[np.abs(gaps) < 1e-9] = 1e-9
        columns, rows = rays.weighed(self._normals / gaps[:, None])
        return Nearness(columns, rows, (gaps > 0).tolist())


@dataclass(frozen=True)
class Nearness:
    """1 / t of planes along rays, which is linear in the direction: a part of columns and one of rows, to be
    added. A plane that a ray goes away from has a nearness below 0.

    Args:
        within: Whether the eye is on the inner side of a plane.
    """

    columns: Float32[np.ndarray, "k 1 w"]
    rows: Float32[np.ndarray, "k h 1"]
    within: list[bool]

    def of(self, planes: slice, rows: slice, columns: slice) -> Nearness:
        """To some of the planes, along the rays of some rows and columns."""
        return Nearness(self.columns[planes, :, columns], self.rows[planes, rows], self.within[planes])

    def first(self) -> tuple[Float32[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
        """t of the first meeting with the polyhedron of all these planes, and the number of its face."""
        # A ray is inside while it is farther than all planes that the eye is outside of (it comes in by the
        # farthest of these, the least near) and nearer than all others.
        shape = self.rows.shape[1], self.columns.shape[2]
        face = np.zeros(shape, dtype=np.uint8)
        coming = np.full(shape, FAR, dtype=np.float32)
        leaving = np.zeros(shape, dtype=np.float32)
        nearness, closer = np.empty_like(coming), np.empty(shape, dtype=bool)
        for number, within in enumerate(self.within):
            np.add(self.columns[number], self.rows[number], out=nearness)
            if within:
                np.maximum(leaving, nearness, out=leaving)
            else:
                np.less(nearness, coming, out=closer)
                np.copyto(coming, nearness, where=closer)
                np.copyto(face, np.uint8(number), where=closer)
        np.greater(coming, leaving, out=closer)
        t = np.full(shape, FAR, dtype=np.float32)
        np.divide(np.float32(1), coming, out=t, where=closer)
        return t, face


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

    def hit(self, rays: Rays) -> tuple[np.ndarray, None]:
        return self._march(rays.stand.eye, rays.directions()), None

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Balls around about, of which its hull is close to that of the ring."""
        (x, y, z), r, m = self.center, self.major, self.minor
        return tuple((((x + r * u), y, z + r * v), (m, m, m)) for u, v in _circle(16))

    edges: ClassVar[tuple[Point, ...]] = ROUND_ABOUT

    def stops(self, origin: Triple, direction: Triple) -> Bool[np.ndarray, "*n"]:
        """Whether it is met by lines from these origins."""
        return self._march(origin, direction) < FAR

    def _march(self, origin: Triple, direction: Triple) -> np.ndarray:
        """t of the first meeting of each line origin + t * direction, FAR for none."""
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
        return np.where((root > 0) & near & (t < end), t, FAR)

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
