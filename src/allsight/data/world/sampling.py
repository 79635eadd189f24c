"""Drawing scenes: a scene follows from (seed, split, stream, index) and the options alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from allsight.data.order import keyed_bits
from allsight.data.world.camera import Camera
from allsight.data.world.options import World
from allsight.data.world.scene import Place, Scene, Sun, Toy
from allsight.data.world.shapes import shape
from allsight.data.world.vocabulary import COLOURS, PATTERN_COLOURS, SETTINGS, SHAPES, SIZES, TEXTURES, Rgb

STREAMS = ("portraits", "scenes")
SPLITS = ("train", "val")
_KEYS = (*STREAMS, "drives", "pictures")
_SPLIT_KEYS = (*SPLITS, "pairs")
"""Everything that is drawn from the seed."""

Rect = tuple[float, float, float, float]


class Draws:
    """The draws of one scene, rounded so that they survive JSON unchanged."""

    def __init__(self, seed: int, split: str, stream: str, index: int) -> None:
        """Stream of draws keyed by integers only.

        Raises:
            ValueError: No such split or stream.
        """
        place = (_SPLIT_KEYS.index(split) << 62) | (_KEYS.index(stream) << 60) | index
        self._rng = np.random.Generator(keyed_bits(place << 64 | seed))

    def number(self, low: float, high: float) -> float:
        return round(low + (high - low) * float(self._rng.random()), 4)

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return low + int(self._rng.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return float(self._rng.random()) < probability

    def choice(self, words: tuple[str, ...]) -> str:
        return words[self.integer(0, len(words) - 1)]

    def vary(self, colour: Rgb, amount: int) -> Rgb:
        """The colour, each channel moved by up to `amount`."""
        r, g, b = (min(255, max(0, c + self.integer(-amount, amount))) for c in colour)
        return r, g, b


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """`first` moved by `share` of the way to `second`."""
    r, g, b = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return r, g, b


def sample_scene(config: World.Config, split: str, stream: str, index: int) -> Scene:
    """Draw a scene as it is intended; `rendering.compose` then leaves out objects that turn out to be hidden.

    Args:
        config: Options of the world.
        split: "train" or "val".
        stream: "portraits" for one main object, whose shape follows from the index so that classes are
            balanced; "scenes" for several.
        index: From 0.
    """
    draws = Draws(config.seed, split, stream, index)
    place = draw_place(draws, config)
    camera, wanted = _camera(draws, config, stream)
    place = replace(place, wall_m=draws.number(8.0, 11.0) if place.kind == "room" else 0.0)
    if stream == "portraits":
        toys = _portrait(draws, config, place, camera, SHAPES[index % len(SHAPES)], wanted)
        if place.kind == "room":
            place = replace(place, wall_m=round(1.25 * max(toy.y_m + toy.scale_m for toy in toys), 4))
    else:
        toys = _group(draws, config, place, camera)
    stones = _stones(draws, config, place, camera, toys)
    return Scene(
        split=split,
        stream=stream,
        index=index,
        place=place,
        camera=camera,
        sun=draw_sun(draws, place),
        toys=tuple(toys),
        stones=tuple(stones),
        main=0 if stream == "portraits" else None,
        relations=(),
        noise=round(40 * config.noise * draws.number(0.3, 1.0)),
        noise_key=draws.integer(0, 2**53 - 1),
    )


def draw_place(draws: Draws, config: World.Config) -> Place:
    """Where a scene is, without a wall."""
    kind = draws.choice(SETTINGS)
    noon, dusk = (96, 156, 226), (112, 118, 172)
    sky = mix(noon, dusk, draws.number(0.0, 1.0) ** 2)
    haze = mix((214, 230, 242), (250, 206, 170), draws.number(0.0, 1.0) ** 3)
    ground: dict[str, tuple[Rgb, Rgb]] = {
        "meadow": ((110, 158, 72), (142, 178, 88)),
        "desert": ((222, 192, 140), (200, 162, 110)),
        "snow": ((232, 238, 246), (206, 218, 234)),
        "square": ((168, 164, 158), (132, 128, 124)),
        "room": ((184, 140, 98), (150, 108, 72)),
    }
    first, second = ground[kind]
    if kind == "room":
        walls: tuple[Rgb, ...] = (
            (226, 214, 190),
            (176, 204, 212),
            (206, 196, 222),
            (196, 214, 180),
            (232, 202, 190),
        )
        sky = draws.vary(walls[draws.integer(0, len(walls) - 1)], 10)
        haze = mix(sky, (255, 255, 255), 0.25) if draws.chance(0.5) else sky
        if draws.chance(0.35):
            first, second = (150, 152, 160), (124, 126, 136)
    if kind == "snow":
        sky, haze = mix(sky, (188, 204, 220), 0.6), (226, 234, 242)
    outdoors = kind != "room"
    return Place(
        kind=kind,
        ground_rgb=draws.vary(first, 12),
        ground_second_rgb=draws.vary(second, 12),
        sky_rgb=draws.vary(sky, 6),
        haze_rgb=draws.vary(haze, 6),
        hills=draws.number(0.04, 0.14) if outdoors and draws.chance(0.8 * config.clutter) else 0.0,
        clouds=draws.number(0.4, 1.0) if outdoors and draws.chance(0.8 * config.clutter) else 0.0,
        wall_m=0.0,
        ornaments=() if outdoors else _ornaments(draws, config),
        offset=(draws.integer(0, 4095), draws.integer(0, 4095)),
    )


def _ornaments(draws: Draws, config: World.Config) -> tuple[tuple[float, float, float, float, Rgb], ...]:
    """Pictures on the wall: (middle x, middle above the eye, half width, half height, colour), lengths as
    parts of the wall's distance, so that they stay in view wherever the wall is put."""
    ornaments = []
    for side in (-1, 1):
        if draws.chance(0.7 * config.clutter):
            colour = draws.vary(tuple(COLOURS.values())[draws.integer(0, len(COLOURS) - 1)], 30)
            middle, height = side * draws.number(0.12, 0.34), draws.number(0.07, 0.15)
            muted = mix(colour, (200, 196, 190), 0.55)
            ornaments.append((middle, height, draws.number(0.04, 0.09), draws.number(0.04, 0.07), muted))
    return tuple(ornaments)


def _camera(draws: Draws, config: World.Config, stream: str) -> tuple[Camera, tuple[str, float]]:
    """The camera, and for a portrait the size and depth of its main object."""
    focal = draws.number(1.05, 1.25)
    if stream == "scenes":
        return Camera(config.size_px, focal, draws.number(1.5, 2.4), draws.number(0.15, 0.27)), ("", 0.0)
    size = draws.choice(tuple(SIZES))
    height = SIZES[size]
    depth = height * focal / draws.number(0.4, 0.66)
    above = height * draws.number(0.75, 1.4)
    pitch = math.atan2(above - 0.5 * height, depth) + draws.number(-0.08, 0.06)
    return Camera(config.size_px, focal, round(above, 4), round(pitch, 4)), (size, round(depth, 4))


def draw_sun(draws: Draws, place: Place) -> Sun:
    """Light from behind the viewer's left or right shoulder, so that shadows fall to the side and back."""
    side = 1 if draws.chance(0.5) else -1
    azimuth, elevation = side * draws.number(0.45, 1.25), draws.number(0.65, 1.0)
    flat = math.cos(elevation)
    direction = (math.sin(azimuth) * flat, -math.cos(azimuth) * flat, math.sin(elevation))
    direct = draws.number(0.42, 0.6) if place.kind != "room" else draws.number(0.34, 0.46)
    x, y, z = (round(value, 5) for value in direction)
    return Sun((x, y, z), direct, round(1.02 - direct, 4))


@dataclass(frozen=True)
class _Spot:
    """A place that a shape of some scale would take: on the ground, and as a rectangle of the picture."""

    kind: str
    x: float
    y: float
    scale: float
    radius: float
    rect: Rect

    @classmethod
    def of(cls, camera: Camera, kind: str, x: float, y: float, scale: float) -> _Spot:
        (x0, y0, _), (x1, y1, top) = shape(kind).bounds
        half = scale * max(-x0, x1, -y0, y1)
        left, _, _ = camera.project(x - half, y, 0.0)
        right, low, _ = camera.project(x + half, y - 0.5 * half, 0.0)
        _, high, _ = camera.project(x, y, top * scale)
        return cls(kind, x, y, scale, shape(kind).radius * scale, (left, high, right, low))


def _covered(back: Rect, front: Rect) -> float:
    """Part of `back` that `front` covers."""
    width = min(back[2], front[2]) - max(back[0], front[0])
    height = min(back[3], front[3]) - max(back[1], front[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((back[2] - back[0]) * (back[3] - back[1]))


_LEAST, _MOST = 0.085, 0.62
"""Smallest and largest extent of a toy in the picture, as parts of its side (portraits aside)."""


def _fits(config: World.Config, camera: Camera, spot: _Spot, taken: list[_Spot]) -> bool:
    """Whether a toy is in view at a fair size, on free ground, hiding and hidden no more than is allowed."""
    rect, side = spot.rect, camera.size_px
    extents = rect[2] - rect[0], rect[3] - rect[1]
    if min(extents) < max(5.0, _LEAST * side) or max(extents) > _MOST * side:
        return False
    if _covered(rect, (0.0, 0.0, float(side), float(side))) < 0.85:
        return False
    for other in taken:
        if math.hypot(spot.x - other.x, spot.y - other.y) < 1.08 * (spot.radius + other.radius):
            return False
        back, front = (spot, other) if spot.y > other.y else (other, spot)
        if _covered(back.rect, front.rect) > max(0.9 * config.occlusion, 0.02):
            return False
    return True


def _toy(draws: Draws, config: World.Config, place: Place, spot: _Spot, size: str) -> Toy:
    """Dress the shape of a spot."""
    colour = draws.choice(tuple(COLOURS))
    texture = draws.choice(TEXTURES[1:]) if draws.chance(config.texture) else "plain"
    share = 0.55 * config.colour_similarity
    # Toys are turned relative to the line of sight, so that what is turned a little is seen turned a little.
    turn, aim = shape(spot.kind).turn_rad, math.atan2(-spot.x, spot.y)
    return Toy(
        shape=spot.kind,
        colour=colour,
        size=size,
        texture=texture,
        x_m=round(spot.x, 4),
        y_m=round(spot.y, 4),
        turn_rad=round(aim + draws.number(-turn, turn), 4),
        scale_m=spot.scale,
        rgb=mix(draws.vary(COLOURS[colour], 12), place.ground_rgb, share),
        pattern_rgb=mix(PATTERN_COLOURS[colour], place.ground_rgb, share),
    )


_TRIES = 40
_NEAREST_M, _FARTHEST_M = 2.6, 9.0


def _group(draws: Draws, config: World.Config, place: Place, camera: Camera) -> list[Toy]:
    """Several toys at free places, some of them behind others on purpose."""
    toys: list[Toy] = []
    taken: list[_Spot] = []
    farthest = min(_FARTHEST_M, place.wall_m - 1.2) if place.wall_m else _FARTHEST_M
    for _ in range(draws.integer(*config.objects)):
        kind, size = draws.choice(SHAPES), draws.choice(tuple(SIZES))
        scale = round(SIZES[size] * draws.number(0.94, 1.06), 4)
        overlap = draws.chance(config.occlusion)
        for attempt in range(_TRIES):
            if overlap and taken and attempt < _TRIES // 2:
                other = taken[draws.integer(0, len(taken) - 1)]
                y = other.y + draws.number(-2.0, 2.5)
                x = other.x / other.y * y + draws.number(-0.8, 0.8) * (scale + other.scale) * 0.5
            else:
                # Even in the picture rather than on the ground: far places are many.
                y = 1.0 / draws.number(1.0 / farthest, 1.0 / _NEAREST_M)
                x = y * draws.number(-0.46, 0.46) / camera.focal
            if not _NEAREST_M <= y <= farthest:
                continue
            spot = _Spot.of(camera, kind, x, y, scale)
            if _fits(config, camera, spot, taken):
                taken.append(spot)
                toys.append(_toy(draws, config, place, spot, size))
                break
    return toys


def _portrait(
    draws: Draws, config: World.Config, place: Place, camera: Camera, kind: str, wanted: tuple[str, float]
) -> list[Toy]:
    """One toy large in the middle, and perhaps smaller ones far behind it."""
    size, depth = wanted
    scale = round(SIZES[size] * draws.number(0.94, 1.06), 4)
    y = depth * math.cos(camera.pitch_rad) + 0.4 * scale
    widest = max(abs(value) for corner in shape(kind).bounds for value in corner[:2]) * scale
    room = max(0.0, 0.46 * depth / camera.focal - widest)
    taken = [_Spot.of(camera, kind, draws.number(-1.0, 1.0) * room, y, scale)]
    toys = [_toy(draws, config, place, taken[0], size)]
    for _ in range(draws.integer(0, 2) if config.objects[1] > 1 else 0):
        for _ in range(_TRIES):
            size = draws.choice(tuple(SIZES))
            other = round(SIZES[size] * draws.number(0.94, 1.06), 4)
            # So far away that it is at most about half as tall in the picture as the main toy.
            far = y * max(1.0, other / scale) * draws.number(1.7, 2.6)
            x = far * draws.number(-0.5, 0.5) / camera.focal
            spot = _Spot.of(camera, draws.choice(SHAPES), x, far, other)
            if _fits(config, camera, spot, taken):
                taken.append(spot)
                toys.append(_toy(draws, config, place, spot, size))
                break
    return toys


def _stones(draws: Draws, config: World.Config, place: Place, camera: Camera, toys: list[Toy]) -> list[Toy]:
    """Stones that lie about outdoors where no toy stands."""
    if place.kind == "room":
        return []
    stones: list[Toy] = []
    nearest = 1.2 * camera.height_m
    for _ in range(draws.integer(0, round(8 * config.clutter))):
        y = 1.0 / draws.number(1.0 / (6 * nearest), 1.0 / nearest)
        x = y * draws.number(-0.5, 0.5) / camera.focal
        scale = round(draws.number(0.3, 0.75) * camera.height_m * 0.5, 4)
        grey = mix(draws.vary((136, 128, 120), 22), place.ground_rgb, 0.25)
        clear = all(
            math.hypot(x - toy.x_m, y - toy.y_m) > shape(toy.shape).radius * toy.scale_m + 0.25 * scale
            for toy in toys
        )
        if clear:
            turn = draws.number(-1.5, 1.5)
            stones.append(
                Toy("stone", "grey", "small", "plain", round(x, 4), round(y, 4), turn, scale, grey, grey)
            )
    return stones
