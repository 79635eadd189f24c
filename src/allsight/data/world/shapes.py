"""The toys of the world: every shape as a few painted solids, about one metre high and standing on z = 0.

Local frame: x to the right, y away from the viewer, z up; the face of a toy looks along -y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from allsight.data.world.hulls import Hulls
from allsight.data.world.solids import Ellipsoid, Frustum, Point, Polyhedron, Solid, Torus, box, hull
from allsight.data.world.vocabulary import SHAPES, Rgb


@dataclass(frozen=True)
class Part:
    """A solid and its paint.

    Args:
        solid: The surface.
        paint: A fixed colour, or None for the colour and the texture of the object.
        flat: It lies on another part and needs no shadow of its own.
    """

    solid: Solid
    paint: Rgb | None = None
    flat: bool = False


@dataclass(frozen=True)
class Shape:
    """Parts of a shape and how it may stand.

    `turn_rad` is the largest turn away from the viewer at which it is still easily told from the others.
    """

    parts: tuple[Part, ...]
    turn_rad: float = math.pi

    @cached_property
    def bounds(self) -> tuple[Point, Point]:
        lows, highs = zip(*(part.solid.bounds for part in self.parts), strict=True)
        low = tuple(min(corner[axis] for corner in lows) for axis in range(3))
        high = tuple(max(corner[axis] for corner in highs) for axis in range(3))
        return low, high  # type: ignore[return-value]

    @cached_property
    def corners(self) -> np.ndarray:
        """Corners of the boxes around the parts, homogeneous [parts * 8, 4]."""
        boxes = (part.solid.bounds for part in self.parts)
        return np.array(
            [
                (x, y, z, 1.0)
                for a, b in boxes
                for x in (a[0], b[0])
                for y in (a[1], b[1])
                for z in (a[2], b[2])
            ]
        )

    @cached_property
    def codes(self) -> tuple[int, ...]:
        """Every face of the shape has a number from 1, a curved part one for itself: the first number of
        each part, and last one more than the largest."""
        codes = [1]
        for part in self.parts:
            codes.append(codes[-1] + (len(part.solid.planes) if isinstance(part.solid, Polyhedron) else 1))
        assert codes[-1] < 256, "codes are kept in a byte"
        return tuple(codes)

    @cached_property
    def face_normals(self) -> np.ndarray:
        """Outward normals by number of face [3, codes]; of curved parts any."""
        table = np.zeros((3, self.codes[-1]), dtype=np.float32)
        for part, first in zip(self.parts, self.codes, strict=False):
            if isinstance(part.solid, Polyhedron):
                table[:, first : first + len(part.solid.planes)] = np.array(part.solid.planes)[:, :3].T
        return table

    @cached_property
    def textured(self) -> np.ndarray:
        """Whether a face takes the object's texture, by its number [codes]."""
        flags = [False]
        for part, first, after in zip(self.parts, self.codes, self.codes[1:], strict=False):
            flags += [part.paint is None] * (after - first)
        return np.array(flags)

    def paints(self, rgb: Rgb) -> np.ndarray:
        """The colour of every face, by its number, of an object of this colour [3, codes]."""
        table = self._fixed_paints.copy()
        table[:, self.textured] = np.array(rgb, dtype=np.float32)[:, None]
        return table

    @cached_property
    def has_faces(self) -> bool:
        """Whether some part is flat."""
        return any(isinstance(part.solid, Polyhedron) for part in self.parts)

    @cached_property
    def is_curved(self) -> bool:
        """Whether some part is curved."""
        return not all(isinstance(part.solid, Polyhedron) for part in self.parts)

    @cached_property
    def hulls(self) -> Hulls:
        """Of the parts that cast a shadow."""
        return Hulls([part.solid for part in self.parts if not part.flat])

    @cached_property
    def shading(self) -> tuple[tuple[int, slice], ...]:
        """The parts that cast a shadow by their number, and where in `hulls` the borders of each are."""
        numbers = (number for number, part in enumerate(self.parts) if not part.flat)
        return tuple(zip(numbers, self.hulls.spans, strict=True))

    @cached_property
    def _fixed_paints(self) -> np.ndarray:
        rows: list[Rgb] = [(0, 0, 0)]
        for part, first, after in zip(self.parts, self.codes, self.codes[1:], strict=False):
            rows += [part.paint or (0, 0, 0)] * (after - first)
        return np.array(rows, dtype=np.float32).T.copy()

    @cached_property
    def radius(self) -> float:
        """Radius of the round place that the shape needs on the ground, however it is turned."""
        (x0, y0, _), (x1, y1, _) = self.bounds
        corner = math.hypot(max(-x0, x1), max(-y0, y1))
        solids = [part.solid for part in self.parts]
        round_about = all(
            isinstance(s, Ellipsoid) or (isinstance(s, Frustum) and s.along == "z") for s in solids
        )
        return max(-x0, x1, -y0, y1) if round_about else corner

    @cached_property
    def height(self) -> float:
        return self.bounds[1][2]


WOOD = (112, 74, 44)
GLASS = (70, 96, 120)
RUBBER = (38, 38, 42)
CREAM = (236, 222, 190)
ROOF = (120, 60, 48)
STEEL = (170, 174, 182)
LAMP = (255, 240, 170)


def _star() -> Shape:
    """Five pointed pieces, each with a ridge from the middle to its tip."""
    outer, inner, thick = 0.56, 0.25, 0.15
    middle = outer * math.cos(math.pi / 5)
    parts = []
    for tip in range(5):
        angle = math.pi / 2 + tip * 2 * math.pi / 5

        def at(radius: float, turn: float, angle: float = angle) -> Point:
            return (radius * math.cos(angle + turn), 0.0, middle + radius * math.sin(angle + turn))

        corners = (at(outer, 0.0), at(inner, math.pi / 5), at(inner, -math.pi / 5))
        front, back = (0.0, -thick, middle), (0.0, thick, middle)
        parts.append(Part(hull((*corners, front, back))))
    return Shape(tuple(parts), math.radians(40))


def _house() -> Shape:
    gable = hull(
        (
            *((x, y, 0.52) for x in (-0.52, 0.52) for y in (-0.46, 0.46)),
            *((x, 0.0, 0.98) for x in (-0.52, 0.52)),
        )
    )
    parts = (
        Part(box((-0.45, -0.38, 0), (0.45, 0.38, 0.54))),
        Part(gable, ROOF),
        Part(box((-0.06, -0.395, 0), (0.14, -0.37, 0.34)), WOOD, flat=True),
        Part(box((-0.36, -0.395, 0.2), (-0.16, -0.37, 0.4)), LAMP, flat=True),
        Part(box((0.24, -0.395, 0.2), (0.4, -0.37, 0.4)), LAMP, flat=True),
        Part(box((0.22, 0.04, 0.7), (0.36, 0.18, 1.06)), ROOF),
    )
    return Shape(parts, math.radians(38))


def _car() -> Shape:
    glass = hull(
        tuple((x, y, 0.42) for x in (-0.46, 0.42) for y in (-0.27, 0.27))
        + tuple((x, y, 0.66) for x in (-0.32, 0.2) for y in (-0.22, 0.22))
    )
    wheels = tuple(
        Part(Frustum((x, 0.16), y, y + 0.12, 0.16, 0.16, along="y"), RUBBER)
        for x in (-0.44, 0.44)
        for y in (-0.33, 0.21)
    )
    caps = tuple(
        Part(Frustum((x, 0.16), y, y + 0.02, 0.075, 0.075, along="y"), STEEL, flat=True)
        for x in (-0.44, 0.44)
        for y in (-0.345, 0.325)
    )
    parts = (
        Part(box((-0.72, -0.3, 0.12), (0.72, 0.3, 0.42))),
        Part(glass, GLASS),
        Part(box((-0.34, -0.235, 0.64), (0.22, 0.235, 0.7))),
        *wheels,
        *caps,
        Part(box((0.7, -0.26, 0.26), (0.735, -0.12, 0.36)), LAMP, flat=True),
        Part(box((0.7, 0.12, 0.26), (0.735, 0.26, 0.36)), LAMP, flat=True),
    )
    return Shape(parts)


def _robot() -> Shape:
    parts = (
        Part(box((-0.2, -0.1, 0), (-0.04, 0.1, 0.26)), RUBBER),
        Part(box((0.04, -0.1, 0), (0.2, 0.1, 0.26)), RUBBER),
        Part(box((-0.26, -0.16, 0.24), (0.26, 0.16, 0.64))),
        Part(box((-0.4, -0.09, 0.3), (-0.28, 0.09, 0.62)), STEEL),
        Part(box((0.28, -0.09, 0.3), (0.4, 0.09, 0.62)), STEEL),
        Part(box((-0.2, -0.16, 0.68), (0.2, 0.16, 0.98))),
        Part(box((-0.13, -0.18, 0.8), (-0.04, -0.15, 0.9)), LAMP, flat=True),
        Part(box((0.04, -0.18, 0.8), (0.13, -0.15, 0.9)), LAMP, flat=True),
        Part(Frustum((0, 0), 0.97, 1.14, 0.03, 0.03), STEEL),
    )
    return Shape(parts, math.radians(45))


@lru_cache
def shape(name: str) -> Shape:
    """The shape of this name: one of `vocabulary.SHAPES`, or "stone" for what lies about without a name."""
    if name == "star":
        return _star()
    if name == "house":
        return _house()
    if name == "car":
        return _car()
    if name == "robot":
        return _robot()
    if name == "pyramid":
        base = tuple((x, y, 0.0) for x in (-0.52, 0.52) for y in (-0.52, 0.52))
        return Shape((Part(hull((*base, (0.0, 0.0, 0.98)))),))
    if name == "mushroom":
        cap = Part(Ellipsoid((0, 0, 0.62), (0.5, 0.5, 0.34)))
        return Shape((Part(Frustum((0, 0), 0, 0.6, 0.19, 0.14), CREAM), cap))
    if name == "tree":
        crown = ((0.3, 0.72, 0.44), (0.56, 0.96, 0.36), (0.8, 1.22, 0.27))
        cones = (Part(Frustum((0, 0), low, high, radius, 0.0)) for low, high, radius in crown)
        return Shape((Part(Frustum((0, 0), 0, 0.36, 0.1, 0.09), WOOD), *cones))
    single: dict[str, tuple[Solid, float]] = {
        "ball": (Ellipsoid((0, 0, 0.5), (0.5, 0.5, 0.5)), math.pi),
        "cone": (Frustum((0, 0), 0, 1.08, 0.46, 0.0), math.pi),
        "cube": (box((-0.42, -0.42, 0), (0.42, 0.42, 0.84)), math.pi),
        "cylinder": (Frustum((0, 0), 0, 0.96, 0.38, 0.38), math.pi),
        "ring": (Torus((0, 0, 0.53), 0.39, 0.14), math.radians(48)),
        "stone": (Ellipsoid((0, 0, 0.1), (0.2, 0.16, 0.14)), math.pi),
    }
    if name not in single:
        raise ValueError(f"shape {name!r}: no such shape; take one of {', '.join(SHAPES)}")
    solid, turn = single[name]
    return Shape((Part(solid),), turn)
