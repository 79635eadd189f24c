"""From words to a scene of the embedded world: toys on open ground, seen from afar and from above.

The camera is far away for its picture's size, so that an object looks the same wherever it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from allsight.data.world.camera import Camera
from allsight.data.world.language.arranging import Arrangement, Thing
from allsight.data.world.language.options import Language
from allsight.data.world.language.vocabulary import PLACES
from allsight.data.world.options import World
from allsight.data.world.sampling import Draws, draw_place, draw_sun
from allsight.data.world.scene import Scene, Toy
from allsight.data.world.shapes import shape
from allsight.data.world.vocabulary import COLOURS, PATTERN_COLOURS

EXTENTS: Final = {"small": 0.2, "medium": 0.285, "large": 0.4}
"""The longer side of an object, as a part of the picture's side; there are gaps between sizes."""

_VARIATION = 0.04
"""How far an extent may be off, as a part of it."""
_FOCAL = 4.0
_DISTANCE_M = 4.5
_PITCHES_RAD = (0.42, 0.56)
_MOST_TURN_RAD = 0.45
_MARGIN = 0.11
"""Least distance of an object's middle from the border of its third, as a part of the picture's side.

With 0.05, when middles lay up to 7.5 of 64 px off that of their third, a network of 8 px patches read 49 % of
the places after 500 steps, and with 0.125 75 % (and 66 % of the colours, not 53 %); there, some objects hide
others."""
_TRIES = 60
_FAR_WALL_M = 60.0
_GROUNDS = World.Config.variant("easy")

_LOOKS = 1 << 40
"""Looks are drawn under numbers of their own, so that they depend on the picture's number alone."""


def scene_of(config: Language.Config, split: str, index: int, things: Arrangement) -> Scene:
    """The scene of an arrangement; toy k is thing k."""
    draws = Draws(config.seed, split, "pictures", _LOOKS + index)
    place = draw_place(draws, _GROUNDS)
    if place.kind == "room":
        place = replace(place, wall_m=_FAR_WALL_M)
    pitch = draws.number(*_PITCHES_RAD)
    camera = Camera(config.size_px, _FOCAL, round(_DISTANCE_M * math.sin(pitch), 4), pitch)
    extents = [
        EXTENTS[thing.size] * draws.number(1.0 - _VARIATION, 1.0 + _VARIATION) * config.size_px
        for thing in things
    ]
    outlines = [_Outline.of(thing.name, draws, pitch) for thing in things]
    middles = _spread(draws, config.size_px, things, extents, outlines)
    return Scene(
        split=split,
        stream="pictures",
        index=index,
        place=place,
        camera=camera,
        sun=draw_sun(draws, place),
        toys=tuple(
            _toy(draws, camera, thing, outline, extent, middle)
            for thing, outline, extent, middle in zip(things, outlines, extents, middles, strict=True)
        ),
        stones=(),
        main=max(range(len(things)), key=lambda k: EXTENTS[things[k].size]),
        relations=(),
        noise=round(40 * config.noise * draws.number(0.3, 1.0)),
        noise_key=draws.integer(0, 2**53 - 1),
    )


@dataclass(frozen=True)
class _Outline:
    """How far a turned shape of scale 1 reaches in the picture of a camera that is far away.

    Args:
        turn_rad: Its turn.
        left, right, low, high: From the place it stands on, to the right and upwards.
    """

    turn_rad: float
    left: float
    right: float
    low: float
    high: float

    @classmethod
    def of(cls, name: str, draws: Draws, pitch_rad: float) -> _Outline:
        form = shape(name)
        most = min(form.turn_rad, _MOST_TURN_RAD)
        turn = draws.number(-most, most)
        cos, sin = math.cos(turn), math.sin(turn)
        tilt, upright = math.sin(pitch_rad), math.cos(pitch_rad)
        # The picture's directions in the frame of the turned shape.
        across, up = (cos, -sin, 0.0), (sin * tilt, cos * tilt, upright)
        knobs = [knob for part in form.parts for knob in part.solid.knobs]

        def reach(way: tuple[float, float, float]) -> float:
            return max(
                sum(w * c for w, c in zip(way, center, strict=True))
                + math.sqrt(sum((w * r) ** 2 for w, r in zip(way, radii, strict=True)))
                for center, radii in knobs
            )

        (x, y, z), (u, v, w) = across, up
        return cls(turn, -reach((-x, -y, -z)), reach(across), -reach((-u, -v, -w)), reach(up))

    @property
    def extent(self) -> float:
        return max(self.right - self.left, self.high - self.low)


def _spread(
    draws: Draws, side: int, things: Arrangement, extents: list[float], outlines: list[_Outline]
) -> list[tuple[float, float]]:
    """Middles (column, row) in px, each in its third of the picture; of some draws, the one that overlaps
    least."""
    best: list[tuple[float, float]] = []
    least = math.inf
    halves = [
        (
            0.5 * extent * (outline.right - outline.left) / outline.extent,
            0.5 * extent * (outline.high - outline.low) / outline.extent,
        )
        for extent, outline in zip(extents, outlines, strict=True)
    ]
    for _ in range(_TRIES):
        middles = []
        for thing, half in zip(things, halves, strict=True):
            row, column = divmod(PLACES.index(thing.place), 3)
            middles.append(
                (_along(draws, side, column, half[0]), _along(draws, side, row, half[1])),
            )
        overlap = sum(
            max(0.0, halves[i][0] + halves[j][0] - abs(middles[i][0] - middles[j][0]))
            * max(0.0, halves[i][1] + halves[j][1] - abs(middles[i][1] - middles[j][1]))
            for i in range(len(things))
            for j in range(i)
        )
        if overlap < least:
            best, least = middles, overlap
        if overlap == 0.0:
            break
    return best


def _along(draws: Draws, side: int, third: int, half: float) -> float:
    """A middle within a third and so that the whole object is in the picture."""
    low, high = (third / 3 + _MARGIN) * side, ((third + 1) / 3 - _MARGIN) * side
    low, high = max(low, half + 1.0), min(high, side - half - 1.0)
    return draws.number(low, max(low, high)) if third < 2 else draws.number(min(low, high), high)


def _toy(
    draws: Draws,
    camera: Camera,
    thing: Thing,
    outline: _Outline,
    extent_px: float,
    middle_px: tuple[float, float],
) -> Toy:
    """The toy that is seen around a place of the picture with this extent."""
    px = extent_px / outline.extent
    column = middle_px[0] - 0.5 * (outline.left + outline.right) * px
    row = middle_px[1] + 0.5 * (outline.low + outline.high) * px
    sin, cos = math.sin(camera.pitch_rad), math.cos(camera.pitch_rad)
    # The ray through that pixel, down to the ground.
    right, down = (value / camera.focal_px - 0.5 / camera.focal for value in (column, row))
    depth = camera.height_m / (sin + down * cos)
    height = shape(thing.name).height
    # Half-way up it is a little nearer.
    scale = px * depth / (camera.focal_px + 0.5 * px * height * sin)
    x, y = right * depth, depth * (cos - down * sin)
    return Toy(
        shape=thing.name,
        colour=thing.colour,
        size=thing.size,
        texture="plain",
        x_m=round(x, 4),
        y_m=round(y, 4),
        turn_rad=round(outline.turn_rad - math.atan2(x, y), 4),
        scale_m=round(scale, 4),
        rgb=draws.vary(COLOURS[thing.colour], 12),
        pattern_rgb=PATTERN_COLOURS[thing.colour],
    )
