"""What drives in the street: the ten classes of the benchmark as painted boxes.

Frame of a thing: x ahead, y to its left, z up, in units of its length, width and height, on the ground; a
part reaches from `low` to `high`. A patch is a painted rectangle on one side of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Rgb = tuple[int, int, int]
Point = tuple[float, float, float]

BODY: Rgb | None = None
"""Painted in the thing's own colour."""
GLASS, TYRE, STEEL = (52, 66, 84), (30, 30, 34), (150, 154, 160)
WHITE_LAMP, RED_LAMP, AMBER = (255, 250, 214), (226, 22, 30), (250, 170, 40)


@dataclass(frozen=True)
class Patch:
    """A painted rectangle on a side: "front", "back", "left" (and "right" alike), in 0..1 of that side.

    `across` runs from the side's right edge (seen from outside) for front and back, and from back to front
    for left and right; `up` from its lower edge.
    """

    side: str
    across: tuple[float, float]
    up: tuple[float, float]
    colour: Rgb


@dataclass(frozen=True)
class Part:
    """A box of a thing."""

    low: Point
    high: Point
    colour: Rgb | None = BODY
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True)
class Model:
    """A class of things.

    Args:
        size_m: Usual length, width and height.
        vary: Largest relative deviation of each of them.
        parts: Boxes; they may overlap.
        colours: Of the body.
        speed_mps: Usual range when it moves.
    """

    size_m: Point
    vary: float
    parts: tuple[Part, ...]
    colours: tuple[Rgb, ...]
    speed_mps: tuple[float, float] = (0.0, 0.0)
    attributes: tuple[str, str] = field(default=("", ""))
    """When it moves and when it stands."""


_PAINTS: tuple[Rgb, ...] = (
    (222, 224, 226),
    (40, 42, 48),
    (128, 132, 138),
    (176, 34, 36),
    (36, 74, 150),
    (30, 104, 72),
    (206, 178, 60),
    (112, 64, 40),
)
_FRONT_LAMPS = (
    Patch("front", (0.03, 0.26), (0.45, 0.75), WHITE_LAMP),
    Patch("front", (0.74, 0.97), (0.45, 0.75), WHITE_LAMP),
)
_BACK_LAMPS = (
    Patch("back", (0.03, 0.24), (0.45, 0.8), RED_LAMP),
    Patch("back", (0.76, 0.97), (0.45, 0.8), RED_LAMP),
)
_WHEELS = tuple(Part((x - 0.07, -0.5, 0.0), (x + 0.07, 0.5, 0.36), TYRE) for x in (-0.31, 0.31))
_MOVING = ("vehicle.moving", "vehicle.parked")


def _cabin(glass: float = 0.86) -> tuple[Patch, ...]:
    around = (0.06, 0.94)
    return (
        Patch("front", around, (0.12, glass), GLASS),
        Patch("back", around, (0.2, glass), GLASS),
        Patch("left", (0.08, 0.48), (0.15, glass), GLASS),
        Patch("left", (0.54, 0.94), (0.15, glass), GLASS),
    )


MODELS: Mapping[str, Model] = {
    "car": Model(
        (4.5, 1.9, 1.6),
        0.1,
        (
            *_WHEELS,
            Part((-0.5, -0.48, 0.14), (0.5, 0.48, 0.58), BODY, (*_FRONT_LAMPS, *_BACK_LAMPS)),
            Part((-0.36, -0.42, 0.58), (0.2, 0.42, 1.0), BODY, _cabin()),
        ),
        _PAINTS,
        (3.0, 12.0),
        _MOVING,
    ),
    "truck": Model(
        (7.2, 2.5, 3.0),
        0.12,
        (
            *(Part((x - 0.06, -0.48, 0.0), (x + 0.06, 0.48, 0.3), TYRE) for x in (-0.32, 0.34)),
            Part((-0.5, -0.5, 0.22), (0.2, 0.5, 1.0), (206, 204, 196), _BACK_LAMPS),
            Part(
                (0.22, -0.48, 0.14),
                (0.5, 0.48, 0.82),
                BODY,
                (
                    Patch("front", (0.06, 0.94), (0.5, 0.9), GLASS),
                    Patch("left", (0.4, 0.9), (0.5, 0.9), GLASS),
                    Patch("front", (0.04, 0.24), (0.1, 0.26), WHITE_LAMP),
                    Patch("front", (0.76, 0.96), (0.1, 0.26), WHITE_LAMP),
                ),
            ),
        ),
        _PAINTS,
        (3.0, 10.0),
        _MOVING,
    ),
    "construction_vehicle": Model(
        (5.6, 2.6, 3.0),
        0.1,
        (
            Part((-0.46, -0.5, 0.0), (0.26, 0.5, 0.26), TYRE),
            Part((-0.5, -0.4, 0.26), (0.1, 0.4, 0.56), (240, 176, 24), _BACK_LAMPS),
            Part((-0.12, -0.3, 0.56), (0.16, 0.3, 0.98), (240, 176, 24), _cabin(0.9)),
            Part((0.16, -0.08, 0.42), (0.5, 0.08, 0.9), (240, 176, 24)),
            Part((0.36, -0.2, 0.1), (0.5, 0.2, 0.46), (90, 86, 80)),
        ),
        ((240, 176, 24),),
        (1.0, 3.0),
        _MOVING,
    ),
    "bus": Model(
        (10.8, 2.7, 3.3),
        0.08,
        (
            *(Part((x - 0.045, -0.49, 0.0), (x + 0.045, 0.49, 0.28), TYRE) for x in (-0.3, 0.34)),
            Part(
                (-0.5, -0.5, 0.1),
                (0.5, 0.5, 1.0),
                BODY,
                (
                    Patch("front", (0.06, 0.94), (0.34, 0.86), GLASS),
                    Patch("back", (0.1, 0.9), (0.5, 0.84), GLASS),
                    *(Patch("left", (n / 6 + 0.02, n / 6 + 0.15), (0.42, 0.8), GLASS) for n in range(6)),
                    Patch("front", (0.05, 0.22), (0.08, 0.18), WHITE_LAMP),
                    Patch("front", (0.78, 0.95), (0.08, 0.18), WHITE_LAMP),
                    Patch("back", (0.04, 0.2), (0.1, 0.24), RED_LAMP),
                    Patch("back", (0.8, 0.96), (0.1, 0.24), RED_LAMP),
                ),
            ),
        ),
        ((218, 70, 44), (52, 120, 190), (232, 200, 70), (70, 150, 90)),
        (3.0, 10.0),
        ("vehicle.moving", "vehicle.stopped"),
    ),
    "trailer": Model(
        (9.5, 2.7, 3.7),
        0.12,
        (
            *(Part((x - 0.045, -0.48, 0.0), (x + 0.045, 0.48, 0.24), TYRE) for x in (-0.36, -0.26)),
            Part((-0.5, -0.5, 0.26), (0.5, 0.5, 1.0), BODY, _BACK_LAMPS),
            Part((-0.46, -0.2, 0.18), (0.46, 0.2, 0.28), STEEL),
            Part((0.3, -0.06, 0.0), (0.34, 0.06, 0.2), STEEL),
        ),
        ((214, 214, 208), (70, 110, 160), (150, 60, 50), (96, 128, 96)),
        (3.0, 9.0),
        _MOVING,
    ),
    "barrier": Model(
        (0.6, 2.4, 1.0),
        0.1,
        (
            Part((-0.5, -0.5, 0.0), (0.5, 0.5, 0.3), (196, 194, 186)),
            Part(
                (-0.22, -0.5, 0.3),
                (0.22, 0.5, 1.0),
                (236, 234, 228),
                tuple(
                    Patch(side, (n / 3 + 0.02, n / 3 + 0.18), (0.2, 0.85), (206, 40, 36))
                    for side in ("front", "back")
                    for n in range(3)
                ),
            ),
        ),
        ((236, 234, 228),),
    ),
    "motorcycle": Model(
        (2.1, 0.8, 1.5),
        0.08,
        (
            *(Part((x - 0.14, -0.1, 0.0), (x + 0.14, 0.1, 0.4), TYRE) for x in (-0.34, 0.34)),
            Part(
                (-0.4, -0.22, 0.26),
                (0.4, 0.22, 0.56),
                BODY,
                (
                    Patch("front", (0.2, 0.8), (0.3, 1.0), WHITE_LAMP),
                    Patch("back", (0.2, 0.8), (0.3, 1.0), RED_LAMP),
                ),
            ),
            Part((-0.2, -0.34, 0.5), (0.06, 0.34, 0.86), (44, 44, 52)),
            Part((-0.14, -0.18, 0.86), (0.02, 0.18, 1.0), (210, 60, 40)),
        ),
        _PAINTS,
        (3.0, 11.0),
        ("cycle.with_rider", "cycle.without_rider"),
    ),
    "bicycle": Model(
        (1.7, 0.6, 1.65),
        0.06,
        (
            *(Part((x - 0.19, -0.05, 0.0), (x + 0.19, 0.05, 0.38), TYRE) for x in (-0.3, 0.3)),
            Part((-0.26, -0.06, 0.34), (0.3, 0.06, 0.44), BODY),
            Part((0.2, -0.42, 0.56), (0.26, 0.42, 0.61), STEEL),
            Part((-0.16, -0.3, 0.46), (0.08, 0.3, 0.84), (228, 228, 70)),
            Part((-0.1, -0.16, 0.86), (0.06, 0.16, 1.0), (206, 164, 130)),
        ),
        ((200, 50, 60), (40, 150, 170), (230, 230, 230)),
        (2.0, 6.0),
        ("cycle.with_rider", "cycle.without_rider"),
    ),
    "pedestrian": Model(
        (0.6, 0.65, 1.75),
        0.08,
        (
            Part((-0.2, -0.34, 0.0), (0.2, -0.04, 0.46), (50, 54, 76)),
            Part((-0.2, 0.04, 0.0), (0.2, 0.34, 0.46), (50, 54, 76)),
            Part((-0.3, -0.44, 0.44), (0.3, 0.44, 0.84), BODY),
            Part(
                (-0.2, -0.2, 0.86),
                (0.2, 0.2, 1.0),
                (92, 64, 46),
                (Patch("front", (0.05, 0.95), (0.05, 0.8), (226, 182, 150)),),
            ),
        ),
        ((196, 60, 56), (60, 96, 170), (240, 200, 70), (90, 150, 90), (170, 90, 160), (230, 226, 220)),
        (0.6, 2.0),
        ("pedestrian.moving", "pedestrian.standing"),
    ),
    "traffic_cone": Model(
        (0.45, 0.45, 0.8),
        0.1,
        (
            Part((-0.5, -0.5, 0.0), (0.5, 0.5, 0.08), (60, 56, 54)),
            Part((-0.36, -0.36, 0.08), (0.36, 0.36, 0.4), (240, 96, 28)),
            Part((-0.26, -0.26, 0.4), (0.26, 0.26, 0.68), (244, 244, 240)),
            Part((-0.15, -0.15, 0.68), (0.15, 0.15, 1.0), (240, 96, 28)),
        ),
        ((240, 96, 28),),
    ),
}
"""Every class of the benchmark. Front and back differ wherever the benchmark asks for a heading."""
