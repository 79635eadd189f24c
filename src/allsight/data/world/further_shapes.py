"""Shapes that captions name and nothing else does; see `shapes` for the frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from allsight.data.world.parts import CREAM, GLASS, STEEL, WOOD, Part, Shape
from allsight.data.world.solids import Ellipsoid, Frustum, Point, Solid, Torus, box, hull

_TURN = math.radians(35)
"""Most are flat, and told apart by their outlines: they are seen from the front."""


def _of(*solids: Solid, paint: dict[int, tuple[int, int, int]] | None = None) -> Shape:
    paints = paint or {}
    return Shape(tuple(Part(solid, paints.get(n)) for n, solid in enumerate(solids)), _TURN)


def _slab(outline: Sequence[tuple[float, float]], thick: float = 0.13) -> Solid:
    """A convex outline in x and z, with some thickness."""
    corners: list[Point] = [(x, y, z) for x, z in outline for y in (-thick, thick)]
    return hull(corners)


def _arch() -> Shape:
    return _of(
        box((-0.5, -0.15, 0), (-0.24, 0.15, 0.7)),
        box((0.24, -0.15, 0), (0.5, 0.15, 0.7)),
        box((-0.56, -0.17, 0.66), (0.56, 0.17, 0.96)),
    )


def _arrow() -> Shape:
    return _of(_slab(((-0.46, 0.5), (0.46, 0.5), (0.0, 1.0))), box((-0.15, -0.13, 0), (0.15, 0.13, 0.52)))


def _boat() -> Shape:
    return _of(
        _slab(((-0.6, 0.3), (0.6, 0.3), (0.36, 0.0), (-0.36, 0.0)), 0.2),
        box((-0.05, -0.04, 0.28), (0.03, 0.04, 1.06)),
        _slab(((0.03, 0.4), (0.5, 0.4), (0.03, 1.02)), 0.03),
        paint={1: WOOD},
    )


def _bolt() -> Shape:
    return _of(
        _slab(((-0.08, 1.06), (0.34, 1.06), (0.02, 0.52), (-0.36, 0.44))),
        _slab(((0.02, 0.66), (0.4, 0.66), (-0.3, 0.0))),
    )


def _bottle() -> Shape:
    return _of(
        Frustum((0, 0), 0.0, 0.56, 0.27, 0.27),
        Frustum((0, 0), 0.56, 0.74, 0.27, 0.1),
        Frustum((0, 0), 0.74, 1.0, 0.1, 0.1),
        Frustum((0, 0), 1.0, 1.08, 0.12, 0.12),
        paint={3: STEEL},
    )


def _cactus() -> Shape:
    return _of(
        Frustum((0, 0), 0.0, 0.9, 0.15, 0.15),
        Ellipsoid((0, 0, 0.9), (0.15, 0.15, 0.15)),
        box((-0.44, -0.09, 0.34), (0.0, 0.09, 0.5)),
        box((-0.44, -0.09, 0.34), (-0.26, 0.09, 0.8)),
        box((0.0, -0.09, 0.22), (0.44, 0.09, 0.38)),
        box((0.26, -0.09, 0.22), (0.44, 0.09, 0.66)),
    )


def _chair() -> Shape:
    legs = [box((x, y, 0), (x + 0.1, y + 0.1, 0.42)) for x in (-0.34, 0.24) for y in (-0.3, 0.2)]
    return _of(
        box((-0.36, -0.34, 0.4), (0.36, 0.34, 0.52)), box((-0.36, 0.24, 0.5), (0.36, 0.34, 1.14)), *legs
    )


def _cross() -> Shape:
    return _of(box((-0.15, -0.13, 0), (0.15, 0.13, 1.0)), box((-0.5, -0.13, 0.36), (0.5, 0.13, 0.66)))


def _cup() -> Shape:
    return _of(
        Frustum((-0.1, 0), 0.0, 0.72, 0.3, 0.4),
        Frustum((-0.1, 0), 0.721, 0.73, 0.33, 0.33),
        Torus((0.36, 0, 0.38), 0.19, 0.07),
        paint={1: (54, 36, 26)},
    )


def _diamond() -> Shape:
    waist: list[Point] = [(x, y, 0.62) for x, y in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    return _of(hull((*waist, (0.0, 0.0, 0.0), (0.0, 0.0, 1.1))))


def _fish() -> Shape:
    return _of(
        Ellipsoid((-0.12, 0, 0.36), (0.46, 0.16, 0.32)),
        _slab(((0.18, 0.36), (0.62, 0.68), (0.62, 0.04)), 0.06),
        Ellipsoid((-0.36, -0.12, 0.44), (0.06, 0.06, 0.06)),
        paint={2: (30, 30, 34)},
    )


def _flag() -> Shape:
    return _of(
        Frustum((-0.36, 0), 0.0, 1.1, 0.05, 0.05),
        box((-0.32, -0.04, 0.52), (0.42, 0.04, 1.06)),
        Frustum((-0.36, 0), 0.0, 0.08, 0.2, 0.16),
        paint={0: STEEL, 2: STEEL},
    )


def _hammer() -> Shape:
    return _of(
        box((-0.08, -0.08, 0), (0.08, 0.08, 0.8)),
        box((-0.5, -0.17, 0.72), (0.34, 0.17, 1.06)),
        paint={0: WOOD},
    )


def _heart() -> Shape:
    return _of(
        Ellipsoid((-0.25, 0, 0.72), (0.29, 0.16, 0.28)),
        Ellipsoid((0.25, 0, 0.72), (0.29, 0.16, 0.28)),
        _slab(((-0.51, 0.63), (0.51, 0.63), (0.0, 0.0), (-0.4, 0.46), (0.4, 0.46), (0.0, 0.84)), 0.12),
    )


def _hourglass() -> Shape:
    return _of(
        Frustum((0, 0), 0.06, 0.54, 0.36, 0.06),
        Frustum((0, 0), 0.54, 1.02, 0.06, 0.36),
        Frustum((0, 0), 0.0, 0.07, 0.42, 0.42),
        Frustum((0, 0), 1.01, 1.08, 0.42, 0.42),
        paint={2: WOOD, 3: WOOD},
    )


def _ladder() -> Shape:
    rungs = [box((-0.3, -0.05, z), (0.3, 0.05, z + 0.1)) for z in (0.14, 0.42, 0.7, 0.98)]
    return _of(box((-0.38, -0.07, 0), (-0.25, 0.07, 1.2)), box((0.25, -0.07, 0), (0.38, 0.07, 1.2)), *rungs)


def _rocket() -> Shape:
    return _of(
        Frustum((0, 0), 0.16, 0.8, 0.2, 0.2),
        Frustum((0, 0), 0.8, 1.2, 0.2, 0.0),
        _slab(((-0.46, 0.0), (-0.18, 0.12), (-0.18, 0.5), (-0.46, 0.16)), 0.04),
        _slab(((0.46, 0.0), (0.18, 0.12), (0.18, 0.5), (0.46, 0.16)), 0.04),
        Ellipsoid((0, -0.17, 0.62), (0.09, 0.06, 0.09)),
        paint={4: GLASS},
    )


def _snowman() -> Shape:
    return _of(
        Ellipsoid((0, 0, 0.3), (0.34, 0.34, 0.3)),
        Ellipsoid((0, 0, 0.7), (0.24, 0.24, 0.22)),
        Ellipsoid((0, 0, 1.0), (0.16, 0.16, 0.16)),
        box((-0.16, -0.2, 1.1), (0.16, 0.12, 1.15)),
        box((-0.1, -0.1, 1.15), (0.1, 0.1, 1.34)),
        paint={3: (40, 40, 46), 4: (40, 40, 46)},
    )


def _stairs() -> Shape:
    return _of(
        *(box((-0.54 + 0.27 * k, -0.25, 0), (-0.27 + 0.27 * k, 0.25, 0.24 * (k + 1))) for k in range(4))
    )


def _table() -> Shape:
    legs = [box((x, y, 0), (x + 0.11, y + 0.11, 0.56)) for x in (-0.56, 0.45) for y in (-0.34, 0.23)]
    return _of(box((-0.64, -0.42, 0.54), (0.64, 0.42, 0.68)), *legs, paint=dict.fromkeys(range(1, 5), CREAM))


FURTHER: Final[dict[str, Callable[[], Shape]]] = {
    "arch": _arch,
    "arrow": _arrow,
    "boat": _boat,
    "bolt": _bolt,
    "bottle": _bottle,
    "cactus": _cactus,
    "chair": _chair,
    "cross": _cross,
    "cup": _cup,
    "diamond": _diamond,
    "fish": _fish,
    "flag": _flag,
    "hammer": _hammer,
    "heart": _heart,
    "hourglass": _hourglass,
    "ladder": _ladder,
    "rocket": _rocket,
    "snowman": _snowman,
    "stairs": _stairs,
    "table": _table,
}
"""Name -> what makes the shape."""
