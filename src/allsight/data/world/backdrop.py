"""What stands behind the toys: sky with clouds, hills, a wall, and the ground in perspective.

Letters in shapes: s side of the picture.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, UInt8

from allsight.data.world.scene import Place, Scene
from allsight.data.world.vocabulary import LABEL_CLASSES, Rgb

_TABLE_SIDE = 256
_SKY, _HILL, _WALL, _GROUND = (LABEL_CLASSES.index(name) for name in ("sky", "hill", "wall", "ground"))


@lru_cache(maxsize=1)
def smooth_noise() -> Float32[np.ndarray, "256 256"]:
    """Noise in 0..1 that repeats without a seam: four octaves of a random grid, smoothly enlarged."""
    rng = np.random.Generator(np.random.Philox(key=np.array([20, 26], dtype=np.uint64)))
    total = np.zeros((_TABLE_SIDE, _TABLE_SIDE), dtype=np.float64)
    for cells, weight in ((8, 0.5), (16, 0.27), (32, 0.15), (64, 0.08)):
        grid = rng.random((cells, cells))
        step = _TABLE_SIDE // cells
        place = np.arange(_TABLE_SIDE) / step
        low = place.astype(np.int64)
        share = place - low
        share = share * share * (3 - 2 * share)
        high = (low + 1) % cells
        rows = grid[low] * (1 - share)[:, None] + grid[high] * share[:, None]
        total += weight * (rows[:, low] * (1 - share) + rows[:, high] * share)
    spread = (total - total.min()) / (total.max() - total.min())
    return spread.astype(np.float32)


@lru_cache(maxsize=1)
def grain() -> Float32[np.ndarray, "256 256"]:
    """Noise in 0..1 without any smoothness."""
    rng = np.random.Generator(np.random.Philox(key=np.array([20, 27], dtype=np.uint64)))
    return rng.random((_TABLE_SIDE, _TABLE_SIDE)).astype(np.float32)


def look_up(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The table at real coordinates, repeated without end."""
    r = np.floor(rows).astype(np.int32) & (_TABLE_SIDE - 1)
    c = np.floor(columns).astype(np.int32) & (_TABLE_SIDE - 1)
    return table.ravel()[(r << 8) + c]


def _colour(rgb: Rgb) -> Float32[np.ndarray, "3 1 1"]:
    return np.array(rgb, dtype=np.float32)[:, None, None]


def _blend(low: Rgb, high: Rgb, share: np.ndarray) -> Float32[np.ndarray, "3 h w"]:
    """From one colour to another."""
    first = _colour(low)
    colours = (_colour(high) - first) * share
    colours += first
    return colours


def _cover(colours: Float32[np.ndarray, "3 h w"], rgb: Rgb, share: np.ndarray) -> None:
    """Paint a colour over others, in place; `share` says how thickly."""
    colours += (_colour(rgb) - colours) * share


def _within(values: np.ndarray) -> np.ndarray:
    """Values cut off at 0 and 1, in place."""
    return np.minimum(np.maximum(values, 0, out=values), 1, out=values)


def _ramp(values: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 up to `start`, 1 from `end` on, straight between."""
    return _within((values - start) * (1.0 / (end - start)))


def draw_backdrop(scene: Scene) -> tuple[Float32[np.ndarray, "3 s s"], UInt8[np.ndarray, "s s"]]:
    """Colours (0..255, without shadows) and label map of a scene without its toys."""
    camera, place = scene.camera, scene.place
    side = camera.size_px
    across, ahead, up = camera.rays(1)
    edge = camera.project(0.0, place.wall_m, 0.0)[1] if place.wall_m else camera.horizon_px
    first = int(min(max(round(edge), 0), side))
    colours = np.empty((3, side, side), dtype=np.float32)
    labels = np.full((side, side), _GROUND, dtype=np.uint8)
    if first > 0:
        labels[:first] = _WALL if place.wall_m else _SKY
        if place.wall_m:
            colours[:, :first] = _wall(scene, across, ahead[:first], up[:first])
        else:
            colours[:, :first] = _sky(place, across, ahead[:first], up[:first], camera.horizon_px)
            if place.hills:
                _add_hills(scene, colours, labels, first)
    if first < side:
        depth = camera.height_m / np.maximum(-up[first:], 1e-4)
        colours[:, first:] = _ground(scene, across * depth, ahead[first:] * depth, depth)
    return colours, labels


def _sky(
    place: Place, across: np.ndarray, ahead: np.ndarray, up: np.ndarray, horizon_px: float
) -> np.ndarray:
    height = np.broadcast_to(_within(up * 2.6), (len(up), across.shape[1]))
    colours = _blend(place.haze_rgb, place.sky_rgb, height)
    if place.clouds:
        # Clouds lie on a plane overhead, so they flatten towards the horizon.
        reach = 26.0 / (np.maximum(up, 0) + 0.12)
        rows = ahead * reach + place.offset[0]
        noise = look_up(smooth_noise(), np.broadcast_to(rows, height.shape), across * reach + place.offset[1])
        cover = _ramp(noise, 0.72 - 0.24 * place.clouds, 1.0 - 0.2 * place.clouds) * 0.85
        _cover(colours, (250, 250, 252), cover)
    return colours


def _add_hills(scene: Scene, colours: np.ndarray, labels: np.ndarray, first: int) -> None:
    """Two rows of hills along the horizon, the farther one paler."""
    side, place = scene.camera.size_px, scene.place
    noise = smooth_noise()
    columns = (np.arange(side, dtype=np.float32) + 0.5) / side
    rows = np.arange(first, dtype=np.float32)[:, None] + 0.5
    for number, (wave, tall, pale) in enumerate(((60.0, 1.0, 0.5), (90.0, 0.6, 0.22))):
        line = np.full(side, float(place.offset[number] % _TABLE_SIDE), dtype=np.float32)
        rise = look_up(noise, line, columns * wave + place.offset[1 - number])
        top = first - side * place.hills * tall * (0.25 + rise)
        cover = _within(rows - (top - 0.5))
        base = _colour(place.ground_rgb) * 0.72 + _colour((10, 24, 26))
        tone = base + (_colour(place.haze_rgb) - base) * pale
        behind = colours[:, :first]
        behind += (tone - behind) * cover
        labels[:first][cover > 0.5] = _HILL


def _wall(scene: Scene, across: np.ndarray, ahead: np.ndarray, up: np.ndarray) -> np.ndarray:
    """A wall with faint stripes, a skirting board and perhaps pictures."""
    place, camera = scene.place, scene.camera
    depth = place.wall_m / ahead
    x, z = across * depth, camera.height_m + up * depth
    unit = 0.055 * place.wall_m
    stripe = x * (1.0 / unit)
    stripe = _within((np.abs(stripe - np.floor(stripe) - 0.5) - 0.25) * 6.0 + 0.5)
    colours = _blend(place.sky_rgb, place.haze_rgb, stripe)
    sharp = camera.focal_px / place.wall_m
    for middle, above, half_width, half_height, colour in place.ornaments:
        dx = np.abs(x - middle * place.wall_m) - half_width * place.wall_m
        dz = np.abs(z - camera.height_m - above * place.wall_m) - half_height * place.wall_m
        outside = np.maximum(dx, dz)
        _cover(colours, (92, 70, 52), _within(0.5 - (outside - 0.012 * place.wall_m) * sharp))
        _cover(colours, colour, _within(0.5 - outside * sharp))
    _cover(colours, (244, 240, 232), _within((0.02 * place.wall_m - z) * sharp + 0.5))
    colours *= _ramp(up + 0.6, 0.0, 0.75)
    return colours


def _ground(scene: Scene, x: np.ndarray, y: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The ground at world places x [rows, s] and y [rows, 1]; `depth` [rows, 1] is along the optical axis."""
    place, camera = scene.place, scene.camera
    grid = x.shape
    # The height of the eye sets the scale of the pattern, so that a low camera does not meet giant tiles.
    unit = 1.0 / min(1.0, camera.height_m / 1.8)
    u, v = x * unit, y * unit
    v = np.broadcast_to(v, grid)
    footprint = depth * (unit / camera.focal_px)
    patches = look_up(smooth_noise(), v * 14.0 + place.offset[0], u * 14.0 + place.offset[1])
    grains = look_up(grain(), v * 37.0 + place.offset[1], u * 37.0 + place.offset[0]) - 0.5
    fade = 1.0 / (1.0 + 60.0 * footprint)
    if place.kind == "square":
        share = _joints(u, v, footprint, 0.8, 0.8, 0.05) * 0.75 + (patches - 0.5) * 0.25
        strength = 10.0
    elif place.kind == "room":
        boards = np.floor(v * (1.0 / 0.42))
        # Every second board is a little darker, and the joints between boards darker still.
        odd = boards - 2.0 * np.floor(boards * 0.5)
        shift = odd * 0.9 + boards * 0.37
        share = odd * 0.16 * fade + _joints(u + shift, v, footprint, 2.4, 0.42, 0.035) * 0.9
        strength = 7.0
    elif place.kind == "desert":
        wave = v * 2.2 + patches * 2.6
        share = np.abs(wave - np.floor(wave) - 0.5) * 1.3 * fade + patches * 0.35
        strength = 9.0
    else:
        share = _ramp(patches, 0.3, 0.75) * 0.9
        strength = 26.0 if place.kind == "meadow" else 4.0
    colours = _blend(place.ground_rgb, place.ground_second_rgb, _within(share))
    colours += grains * (fade * strength)
    if not place.wall_m:
        _cover(colours, place.haze_rgb, 0.7 * depth / (depth + 26.0))
    return colours


def _joints(
    u: np.ndarray, v: np.ndarray, footprint: np.ndarray, length: float, width: float, gap: float
) -> np.ndarray:
    """1 in the joints between tiles, 0 on the tiles, and their average where pixels are larger."""
    total: np.ndarray | None = None
    for place, period in ((u, length), (v, width)):
        phase = place * (1.0 / period)
        away = np.abs(phase - np.floor(phase) - 0.5) * period
        soft = np.maximum(footprint, 0.5 * gap)
        line = _within((away - 0.5 * (period - gap)) / soft + 0.5) * np.minimum(1.0, gap / soft)
        total = line if total is None else np.maximum(total, line)
    assert total is not None
    return total
