"""Everything that stands in the street as painted rectangles in the world.

Letters in shapes: q rectangles, k things.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from allsight.data.world.drives.drive import Drive
from allsight.data.world.drives.models import AMBER, MODELS, RED_LAMP, WHITE_LAMP, Part, Rgb

_LAMPS = {WHITE_LAMP, RED_LAMP, AMBER}


@dataclass(frozen=True)
class Shells:
    """Rectangles, things one after the other and each thing's parts one after the other.

    Args:
        corners: In the world, around each rectangle.
        normals: Outward.
        rgb: Colours in white light.
        owner: Number of the thing, from 1; 0 for houses.
        body: Number of the thing or house, each different.
        part: Number of the part, each different.
        is_patch: Painted on a side of its part.
        is_lamp: Gives light of its own.
    """

    corners: Float64[np.ndarray, "q 4 3"]
    normals: Float64[np.ndarray, "q 3"]
    rgb: Float64[np.ndarray, "q 3"]
    owner: Int64[np.ndarray, " q"]
    body: Int64[np.ndarray, " q"]
    part: Int64[np.ndarray, " q"]
    is_patch: np.ndarray
    is_lamp: np.ndarray


_SIDES: dict[str, tuple[tuple[float, float, float], tuple[tuple[int, int, int], ...]]] = {
    # Outward normal, and corners (0 low, 1 high of each axis) from the lower right, seen from outside.
    "front": ((1, 0, 0), ((1, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1))),
    "back": ((-1, 0, 0), ((0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1))),
    "left": ((0, 1, 0), ((0, 1, 0), (1, 1, 0), (1, 1, 1), (0, 1, 1))),
    "right": ((0, -1, 0), ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1))),
    "top": ((0, 0, 1), ((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1))),
}


def _rectangles(part: Part) -> list[tuple[np.ndarray, tuple[float, float, float], Rgb | None, bool]]:
    """Corners in the thing's units, normal, colour, whether a patch."""
    ends = np.array([part.low, part.high])
    found = []
    for normal, corners in _SIDES.values():
        found.append(
            (
                np.array([[ends[pick, axis] for axis, pick in enumerate(c)] for c in corners]),
                normal,
                part.colour,
                False,
            )
        )
    for patch in part.patches:
        for side in ("left", "right") if patch.side == "left" else (patch.side,):
            normal, corners = _SIDES[side]
            places = np.array([[ends[pick, axis] for axis, pick in enumerate(c)] for c in corners])
            right, up = places[1] - places[0], places[3] - places[0]
            rectangle = np.array(
                [
                    places[0] + a * right + b * up
                    for a, b in (
                        (patch.across[0], patch.up[0]),
                        (patch.across[1], patch.up[0]),
                        (patch.across[1], patch.up[1]),
                        (patch.across[0], patch.up[1]),
                    )
                ]
            )
            found.append((rectangle, normal, patch.colour, True))
    return found


@lru_cache(maxsize=32)
def _of_class(name: str) -> tuple[np.ndarray, ...]:
    """Corners, normals, colours (NaN for the body's own), part numbers and flags of a class's rectangles."""
    corners, normals, colours, parts, patches, lamps = [], [], [], [], [], []
    for number, part in enumerate(MODELS[name].parts):
        for rectangle, normal, colour, is_patch in _rectangles(part):
            corners.append(rectangle)
            normals.append(normal)
            colours.append(colour or (np.nan,) * 3)
            parts.append(number)
            patches.append(is_patch)
            lamps.append(colour in _LAMPS)
    return (
        np.array(corners, dtype=float),
        np.array(normals, dtype=float),
        np.array(colours, dtype=float),
        np.array(parts),
        np.array(patches),
        np.array(lamps),
    )


Piece = tuple[Any, ...]
"""Corners, normals, colours, owner, body, parts and flags of one thing or house."""


def houses(drive: Drive) -> list[Piece]:
    """The houses of a street, the same at all times."""
    return [_house(house, n) for n, house in enumerate(drive.street.houses)]


def shells(drive: Drive, built: list[Piece], frame: int) -> Shells:
    """The houses, and the things at a frame's time."""
    pieces = list(built)
    for number, thing in enumerate(drive.things, start=1):
        corners, normals, rgb, parts, patches, lamps = _of_class(thing.name)
        rgb = np.where(np.isnan(rgb), np.array(thing.rgb, dtype=float), rgb)
        x, y, heading = thing.track.at(drive.time_s(frame))
        body = len(pieces)
        pieces.append(
            (
                *_stood(corners * np.array(thing.size_lwh_m), normals, x, y, heading),
                rgb,
                number,
                body,
                parts,
                patches,
                lamps,
            )
        )
    return _joined(pieces)


def _stood(
    corners: np.ndarray, normals: np.ndarray, x: float, y: float, heading: float
) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return corners @ turn + np.array([x, y, 0.0]), normals @ turn


_HOUSE = Part((-0.5, -0.5, 0.0), (0.5, 0.5, 1.0))


def _house(house: tuple[float, ...], number: int) -> Piece:
    """A box with rows of windows."""
    x, y, heading, length, depth, height, colour = house
    base = np.array((196, 178, 156)) * (1 - colour) + np.array((148, 110, 98)) * colour
    sides = _rectangles(_HOUSE)
    corners, normals, rgb, patches = [], [], [], []
    for rectangle, normal, _, _ in sides:
        corners.append(rectangle)
        normals.append(normal)
        rgb.append(base)
        patches.append(False)
        if normal[2]:
            continue
        wide = length if normal[1] else depth
        across, floors = max(1, int(wide / 2.4)), max(1, int(height / 2.8))
        right, up = rectangle[1] - rectangle[0], rectangle[3] - rectangle[0]
        for floor in range(floors):
            # One band of glass a floor; single windows would cost too many rectangles.
            for n in range(min(across, 3)):
                a, b = (n + 0.2) / min(across, 3), (n + 0.8) / min(across, 3)
                c, d = (floor + 0.3) / floors, (floor + 0.75) / floors
                corners.append(
                    np.array([rectangle[0] + p * right + q * up for p, q in ((a, c), (b, c), (b, d), (a, d))])
                )
                normals.append(normal)
                rgb.append(np.array((74, 84, 98)))
                patches.append(True)
    scaled = np.array(corners) * np.array([length, depth, height])
    placed = _stood(scaled, np.array(normals, dtype=float), x, y, heading)
    none = np.zeros(len(rgb), dtype=bool)
    return (
        *placed,
        np.array(rgb, dtype=float),
        0,
        number,
        np.zeros(len(rgb), dtype=int),
        np.array(patches),
        none,
    )


def _joined(pieces: list[Piece]) -> Shells:
    if not pieces:
        none = np.zeros(0, dtype=int)
        return Shells(
            np.zeros((0, 4, 3)), np.zeros((0, 3)), np.zeros((0, 3)), none, none, none, none > 0, none > 0
        )
    corners, normals, rgb, owners, bodies, parts, patches, lamps = zip(*pieces, strict=True)
    counts = [len(piece) for piece in rgb]
    body = np.repeat(bodies, counts)
    return Shells(
        np.concatenate(corners),
        np.concatenate(normals),
        np.concatenate(rgb),
        np.repeat(owners, counts),
        body,
        body * 64 + np.concatenate(parts),
        np.concatenate(patches),
        np.concatenate(lamps),
    )
