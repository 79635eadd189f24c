"""The toys of the world: every shape as a few painted solids, about one metre high and standing on z = 0.

Local frame: x to the right, y away from the viewer, z up; the face of a toy looks along -y.
"""

from __future__ import annotations

import math
from functools import lru_cache

from allsight.data.world.further_shapes import FURTHER
from allsight.data.world.parts import CREAM, GLASS, LAMP, ROOF, RUBBER, STEEL, WOOD, Part, Shape
from allsight.data.world.solids import Ellipsoid, Frustum, Point, Solid, Torus, box, hull
from allsight.data.world.vocabulary import CAPTION_SHAPES, SHAPES


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
    """The shape of this name: one of `vocabulary.SHAPES` or `vocabulary.CAPTION_SHAPES`, or "stone" for what
    lies about without a name."""
    if name in FURTHER:
        return FURTHER[name]()
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
        raise ValueError(f"shape {name!r}: no such shape; take one of {', '.join(SHAPES + CAPTION_SHAPES)}")
    solid, turn = single[name]
    return Shape((Part(solid),), turn)
