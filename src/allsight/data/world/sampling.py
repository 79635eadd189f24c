"""Drawing scenes: a scene follows from (seed, split, stream, index) and the options alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from allsight.data.world.camera import Camera
from allsight.data.world.options import World
from allsight.data.world.scene import Place, Scene, Sun, Toy
from allsight.data.world.shapes import shape
from allsight.data.world.vocabulary import COLOURS, PATTERN_COLOURS, SETTINGS, SHAPES, SIZES, TEXTURES, Rgb

STREAMS = ("portraits", "scenes")
SPLITS = ("train", "val")

Rect = tuple[float, float, float, float]


class Draws:
    """The draws of one scene, rounded so that they survive JSON unchanged."""

    def __init__(self, seed: int, split: str, stream: str, index: int) -> None:
        """Stream of draws keyed by integers only.

        Raises:
            ValueError: No such split or stream.
        """
        low = (SPLITS.index(split) << 62) | (STREAMS.index(stream) << 60) | index
        self._rng = np.random.Generator(np.random.Philox(key=np.array([seed, low], dtype=np.uint64)))

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
    place = _place(draws, config)
    camera, wanted = _camera(draws, config, stream)
    place = replace(place, wall_m=draws.number(8.0, 11.0) if place.kind == "room" else 0.0)
    if stream == "portraits":
        toys = _portrait(draws, config, place, camera, SHAPES[index % len(SHAPES)], wanted)
        if place.kind == "room":
            place = replace(place, wall_m=round(1.25 * max(toy.y_m + toy.scale_m for toy in toys), 4))
    else:
        toys = _group(draws, config, place, camera, [])
    stones = _stones(draws, config, place, camera, toys)
    return Scene(
        split=split,
        stream=stream,
        index=index,
        place=place,
        camera=camera,
        sun=_sun(draws, place),
        toys=tuple(toys),
        stones=tuple(stones),
        main=0 if stream == "portraits" else None,
        relations=(),
        noise=round(40 * config.noise * draws.number(0.3, 1.0)),
        noise_key=draws.integer(0, 2**53 - 1),
    )


def _place(draws: Draws, config: World.Config) -> Place:
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


def _sun(draws: Draws, place: Place) -> Sun:
    """Light from behind the viewer's left or right shoulder, so that shadows fall to the side and back."""
    side = 1 if draws.chance(0.5) else -1
    azimuth, elevation = side * draws.number(0.45, 1.25), draws.number(0.65, 1.0)
    flat = math.cos(elevation)
    direction = (math.sin(azimuth) * flat, -math.cos(azimuth) * flat, math.sin(elevation))
    direct = draws.number(0.42, 0.6) if place.kind != "room" else draws.number(0.34, 0.46)
    x, y, z = (round(value, 5) for value in direction)
    return Sun((x, y, z), direct, round(1.02 - direct, 4))


def _paint(draws: Draws, config: World.Config, place: Place, name: str) -> tuple[Rgb, Rgb]:
    share = 0.55 * config.colour_similarity
    main = mix(draws.vary(COLOURS[name], 12), place.ground_rgb, share)
    return main, mix(PATTERN_COLOURS[name], place.ground_rgb, share)


def _toy(
    draws: Draws,
    config: World.Config,
    place: Place,
    x: float,
    y: float,
    *,
    kind: str,
    size: str,
    scale: float,
) -> Toy:
    colour = draws.choice(tuple(COLOURS))
    texture = draws.choice(TEXTURES[1:]) if draws.chance(config.texture) else "plain"
    turn = shape(kind).turn_rad
    rgb, pattern = _paint(draws, config, place, colour)
    # Toys are turned relative to the line of sight, so that what is turned a little is seen turned a little.
    aim = math.atan2(-x, y)
    return Toy(
        kind,
        colour,
        size,
        texture,
        round(x, 4),
        round(y, 4),
        round(aim + draws.number(-turn, turn), 4),
        scale,
        rgb,
        pattern,
    )


def outline_px(camera: Camera, toy: Toy) -> Rect:
    """A rectangle about where the toy will be seen, not clipped to the picture."""
    form = shape(toy.shape)
    (x0, y0, _), (x1, y1, top) = form.bounds
    half = toy.scale_m * max(-x0, x1, -y0, y1)
    left, _, _ = camera.project(toy.x_m - half, toy.y_m, 0.0)
    right, low, _ = camera.project(toy.x_m + half, toy.y_m - 0.5 * half, 0.0)
    _, high, _ = camera.project(toy.x_m, toy.y_m, top * toy.scale_m)
    return left, high, right, low


def _covered(back: Rect, front: Rect) -> float:
    """Part of `back` that `front` covers."""
    width = min(back[2], front[2]) - max(back[0], front[0])
    height = min(back[3], front[3]) - max(back[1], front[1])
    area = max((back[2] - back[0]) * (back[3] - back[1]), 1e-6)
    return max(width, 0.0) * max(height, 0.0) / area


_LEAST, _MOST = 0.085, 0.62
"""Smallest and largest extent of a toy in the picture, as parts of its side (portraits aside)."""


def _fits(config: World.Config, camera: Camera, toy: Toy, others: list[Toy]) -> bool:
    """Whether a toy is in view at a fair size, on free ground, hiding and hidden no more than is allowed."""
    rect, side = outline_px(camera, toy), camera.size_px
    extents = rect[2] - rect[0], rect[3] - rect[1]
    if min(extents) < max(5.0, _LEAST * side) or max(extents) > _MOST * side:
        return False
    if _covered(rect, (0.0, 0.0, float(side), float(side))) < 0.85:
        return False
    radius = shape(toy.shape).radius * toy.scale_m
    for other in others:
        apart = math.hypot(toy.x_m - other.x_m, toy.y_m - other.y_m)
        if apart < 1.08 * (radius + shape(other.shape).radius * other.scale_m):
            return False
        rects = (rect, outline_px(camera, other))
        back, front = rects if toy.y_m > other.y_m else rects[::-1]
        if _covered(back, front) > max(0.9 * config.occlusion, 0.02):
            return False
    return True


_TRIES = 40
_NEAREST_M, _FARTHEST_M = 2.6, 9.0


def _group(draws: Draws, config: World.Config, place: Place, camera: Camera, toys: list[Toy]) -> list[Toy]:
    """Several toys at free places, some of them behind others on purpose."""
    count = draws.integer(*config.objects)
    farthest = min(_FARTHEST_M, place.wall_m - 1.2) if place.wall_m else _FARTHEST_M
    for _ in range(count):
        kind, size = draws.choice(SHAPES), draws.choice(tuple(SIZES))
        scale = round(SIZES[size] * draws.number(0.94, 1.06), 4)
        overlap = draws.chance(config.occlusion)
        for attempt in range(_TRIES):
            if overlap and toys and attempt < _TRIES // 2:
                other = toys[draws.integer(0, len(toys) - 1)]
                y = other.y_m + draws.number(-2.0, 2.5)
                x = other.x_m / other.y_m * y + draws.number(-0.8, 0.8) * (scale + other.scale_m) * 0.5
            else:
                # Even in the picture rather than on the ground: far places are many.
                y = 1.0 / draws.number(1.0 / farthest, 1.0 / _NEAREST_M)
                x = y * draws.number(-0.46, 0.46) / camera.focal
            if not _NEAREST_M <= y <= farthest:
                continue
            toy = _toy(draws, config, place, x, y, kind=kind, size=size, scale=scale)
            if _fits(config, camera, toy, toys):
                toys.append(toy)
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
    main = _toy(draws, config, place, draws.number(-1.0, 1.0) * room, y, kind=kind, size=size, scale=scale)
    toys = [main]
    for _ in range(draws.integer(0, 2) if config.objects[1] > 1 else 0):
        for _ in range(_TRIES):
            other_size = draws.choice(tuple(SIZES))
            other_scale = round(SIZES[other_size] * draws.number(0.94, 1.06), 4)
            # So far away that it is at most about half as tall in the picture as the main toy.
            far = y * max(1.0, other_scale / scale) * draws.number(1.7, 2.6)
            x = far * draws.number(-0.5, 0.5) / camera.focal
            toy = _toy(
                draws, config, place, x, far, kind=draws.choice(SHAPES), size=other_size, scale=other_scale
            )
            if _fits(config, camera, toy, toys):
                toys.append(toy)
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
