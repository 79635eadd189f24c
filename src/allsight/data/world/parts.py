"""What toys are made of: painted solids, and what follows from them for drawing.

Local frame: x to the right, y away from the viewer, z up; the face of a toy looks along -y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from allsight.data.world.hulls import Hulls
from allsight.data.world.solids import Ellipsoid, Faces, Frustum, Point, Polyhedron, Solid
from allsight.data.world.vocabulary import Rgb


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
    def faces(self) -> Faces | None:
        """Of the parts that are polyhedra; None if there are none."""
        solids = [part.solid for part in self.parts if isinstance(part.solid, Polyhedron)]
        return Faces(solids) if solids else None

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
