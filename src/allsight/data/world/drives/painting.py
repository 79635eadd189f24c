"""Pictures of a drive: the street in perspective, and things over it, the far ones first.

Letters in shapes: h w a camera's picture, q rectangles.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from PIL import Image, ImageDraw

from allsight.data.order import keyed_bits
from allsight.data.world.drives.drive import Drive, Lens
from allsight.data.world.drives.ground import hazed, paint_ground
from allsight.data.world.drives.shells import Shells, houses, shells

SCALE = 2
"""Things are painted at this many times the picture's resolution, so that their edges are smooth."""

_NEAR_M = 0.3


@dataclass(frozen=True)
class Shot:
    """A picture and what is to be seen of each thing.

    Args:
        picture: RGB.
        pixels: Pixels in which each thing is seen, by its number in `drive.things`; those out of view are
            left out.
        alone: The same if nothing stood before it.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    pixels: dict[int, int]
    alone: dict[int, int]


class Painter:
    """Paints the pictures of one drive."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self._houses = houses(drive)

    def take(self, frame: int) -> dict[str, Shot]:
        """The pictures of all cameras at a frame; each is taken a moment before or after the frame's time."""
        scenery = shells(self.drive, self._houses, frame)
        shade = _shadow_corners(self.drive, frame)
        return {camera: self._shot(scenery, shade, camera, frame) for camera in self.drive.rig}

    def _shot(self, scenery: Shells, shade: Float64[np.ndarray, "k 8 3"], camera: str, frame: int) -> Shot:
        drive, lens = self.drive, self.drive.rig[camera]
        world_from_cam = drive.world_from_ego(drive.time_s(frame) + lens.delay_s) @ lens.ego_from_cam
        height, width = lens.hw_px
        seen = _Projection.of(drive, scenery, lens, world_from_cam)
        dark = _shadows(shade, drive.weather.direct > 0.2, lens, world_from_cam)
        ground = np.minimum(paint_ground(drive, lens, world_from_cam, dark), 255).astype(np.uint8)
        canvas = Image.fromarray(np.ascontiguousarray(ground.transpose(1, 2, 0))).resize(
            (SCALE * width, SCALE * height), Image.Resampling.NEAREST
        )
        marks = Image.new("L", (width, height), 0)
        colours, numbers = ImageDraw.Draw(canvas), ImageDraw.Draw(marks)
        alone: dict[int, int] = {}
        for start, stop, owner in seen.bodies:
            places: list[list[float]] = []
            for n in range(start, stop):
                points = seen.points[n]
                colours.polygon([SCALE * v for v in points], fill=seen.rgb[n])
                if owner and not seen.is_patch[n]:
                    numbers.polygon([v - 0.5 for v in points], fill=owner)
                    places.append(points)
                elif not seen.is_patch[n]:
                    numbers.polygon([v - 0.5 for v in points], fill=0)
            if places:
                alone[owner - 1] = _count(marks, owner, places)
        counts = np.bincount(np.asarray(marks).ravel(), minlength=256)
        picture = _noisy(drive, np.asarray(canvas.reduce(SCALE)), frame, camera)
        return Shot(picture, {n: int(counts[n + 1]) for n in alone}, alone)


def _count(marks: Image.Image, number: int, places: list[list[float]]) -> int:
    """Pixels that carry a number, around some outlines."""
    columns = [v for points in places for v in points[::2]]
    rows = [v for points in places for v in points[1::2]]
    left, top = max(int(min(columns)) - 1, 0), max(int(min(rows)) - 1, 0)
    right, bottom = min(int(max(columns)) + 2, marks.width), min(int(max(rows)) + 2, marks.height)
    if left >= right or top >= bottom:
        return 0
    return marks.crop((left, top, right, bottom)).histogram()[number]


@dataclass(frozen=True)
class _Projection:
    """What a camera sees, in the order of painting.

    Args:
        bodies: First rectangle, one after the last, and owner of each body, the farthest first.
        points: x, y, x, y, ... of each rectangle in pixels.
        rgb: Colours in the light of the scene.
        is_patch: As in the shells.
    """

    bodies: list[tuple[int, int, int]]
    points: list[list[float]]
    rgb: list[tuple[int, int, int]]
    is_patch: list[bool]

    @classmethod
    def of(
        cls, drive: Drive, scenery: Shells, lens: Lens, world_from_cam: Float[np.ndarray, "4 4"]
    ) -> _Projection:
        eye = world_from_cam[:3, 3]
        facing = ((scenery.corners[:, 0] - eye) * scenery.normals).sum(axis=1) < 0
        local = (scenery.corners - eye) @ world_from_cam[:3, :3]
        depth = local[..., 2]
        pixels = local[..., :2] / np.maximum(depth, 1e-6)[..., None] * lens.focal_px
        half = np.array([lens.hw_px[1], lens.hw_px[0]]) / 2
        ahead = np.greater(depth, _NEAR_M)
        out = np.greater(pixels, half).all(axis=1) | np.less(pixels, -half).all(axis=1)
        beside = np.logical_or.reduce(out, axis=1) & np.logical_and.reduce(ahead, axis=1)
        kept = np.flatnonzero(
            facing & np.logical_or.reduce(ahead, axis=1) & ~beside & (depth.min(axis=1) < 110.0)
        )
        # The nearest corner of a body's ground plan decides, then that of the part.
        away = np.sqrt((local[..., ::2] ** 2).sum(axis=2)).mean(axis=1)
        bodies, parts = scenery.body[kept], scenery.part[kept]
        of_body, of_part = _least(bodies, away[kept]), _least(parts, away[kept])
        order = np.lexsort((scenery.is_patch[kept], parts, -of_part, bodies, -of_body))
        kept = kept[order]
        whole = np.logical_and.reduce(ahead[kept], axis=1).tolist()
        pixels = pixels + half
        points = [
            pixels[n].ravel().tolist() if full else _clipped(local[n], lens)
            for n, full in zip(kept.tolist(), whole, strict=True)
        ]
        edges = [0, *(np.flatnonzero(np.diff(scenery.body[kept])) + 1).tolist(), len(kept)]
        spans = [(a, b, int(scenery.owner[kept[a]])) for a, b in itertools.pairwise(edges) if a < b]
        rgb = _lit(drive, scenery, kept, depth)
        return cls(spans, points, rgb, scenery.is_patch[kept].tolist())


def _least(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value the least of its group."""
    if not groups.size:
        return values
    least = np.full(int(groups.max()) + 1, np.inf)
    np.minimum.at(least, groups, values)
    return least[groups]


def _clipped(corners: Float64[np.ndarray, "n 3"], lens: Lens) -> list[float]:
    """Pixels of the part of a polygon that lies before the camera: x, y, x, y, ..."""
    focal, (height, width) = lens.focal_px, lens.hw_px
    points: list[float] = []
    rows = corners.tolist()
    for (x, y, z), (u, v, w) in zip(rows, rows[1:] + rows[:1], strict=True):
        if z >= _NEAR_M:
            points += [x / z * focal + width / 2, y / z * focal + height / 2]
        if (z >= _NEAR_M) != (w >= _NEAR_M):
            share = (_NEAR_M - z) / (w - z)
            at_x, at_y = x + share * (u - x), y + share * (v - y)
            points += [at_x / _NEAR_M * focal + width / 2, at_y / _NEAR_M * focal + height / 2]
    return points


def _lit(drive: Drive, scenery: Shells, kept: np.ndarray, depth: np.ndarray) -> list[tuple[int, int, int]]:
    weather = drive.weather
    facing = np.maximum(scenery.normals[kept] @ np.array(weather.sun), 0)
    light = weather.ambient * (0.8 + 0.2 * scenery.normals[kept, 2]) + 1.1 * weather.direct * facing
    light = np.where(scenery.is_lamp[kept], np.maximum(light, 1.0), light)
    rgb = scenery.rgb[kept] * light[:, None]
    haze = np.asarray(hazed(np.maximum(depth[kept].mean(axis=1), 0)))[:, None]
    bright = min(1.0, weather.ambient + weather.direct * weather.sun[2])
    rgb += (np.array(weather.haze_rgb) * bright - rgb) * haze
    return [tuple(row) for row in np.clip(rgb + 0.5, 0, 255).astype(int).tolist()]


def _shadow_corners(drive: Drive, frame: int) -> Float64[np.ndarray, "k 8 3"]:
    """On the ground: the four corners of each thing, then the shadows of those above them."""
    sun = np.array(drive.weather.sun)
    # A low sun's shadows are cut short, so that they do not cover the whole street.
    reach = sun[:2] / max(float(sun[2]), 0.5)
    corners = np.zeros((len(drive.things), 8, 3))
    for number, thing in enumerate(drive.things):
        x, y, heading = thing.track.at(drive.time_s(frame))
        length, wide, tall = thing.size_lwh_m
        cos, sin = np.cos(heading), np.sin(heading)
        base = _AROUND * (0.5 * length, 0.46 * wide) @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
        corners[number, :4, :2] = base
        corners[number, 4:, :2] = base - reach * 0.95 * tall
    return corners


_AROUND = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
_FACES = [[0, 1, 2, 3], [4, 5, 6, 7], *([n, (n + 1) % 4, 4 + (n + 1) % 4, 4 + n] for n in range(4))]


def _shadows(
    corners: Float64[np.ndarray, "k 8 3"],
    is_sunny: bool,
    lens: Lens,
    world_from_cam: Float[np.ndarray, "4 4"],
) -> Bool[np.ndarray, "h w"]:
    """Where things keep the sun off the ground: the hull of each box's shadow, as overlapping rectangles."""
    height, width = lens.hw_px
    mask = Image.new("1", (width, height), 0)
    paint = ImageDraw.Draw(mask)
    local = (corners - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
    depth = local[..., 2]
    aside = np.abs(local[..., 0]) * lens.focal_px > 0.5 * width * np.maximum(depth, _NEAR_M)
    same = (np.sign(local[..., 0]) == np.sign(local[:, :1, 0])).all(axis=1)
    hidden = (aside.all(axis=1) & same) | (depth < _NEAR_M).all(axis=1)
    for places in local[~hidden]:
        for face in _FACES if is_sunny else _FACES[:1]:
            points = _clipped(places[face], lens)
            if len(points) >= 6:
                paint.polygon([v - 0.5 for v in points], fill=1)
    return np.asarray(mask)


def _noisy(
    drive: Drive, picture: UInt8[np.ndarray, "h w 3"], frame: int, camera: str
) -> UInt8[np.ndarray, "h w 3"]:
    """Add the camera's noise (triangular, from integers alone)."""
    if not drive.noise:
        return picture
    draws = keyed_bits((frame * 64 + list(drive.rig).index(camera)) << 64 | drive.noise_key)
    raw = draws.random_raw(-(-picture.size // 4)).astype("<u8", copy=False).view(np.uint8)
    noise = np.add(*raw[: 2 * picture.size].reshape(2, *picture.shape), dtype=np.int32) - 255
    return np.clip(picture + (noise * drive.noise) // 255, 0, 255).astype(np.uint8)
