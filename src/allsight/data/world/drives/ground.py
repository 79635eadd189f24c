"""The street and the sky as a camera sees them, without things.

Letters in shapes: h w the picture, n its pixels that look at the ground.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32

from allsight.data.world.backdrop import grain, look_up, smooth_noise
from allsight.data.world.drives.drive import Drive, Lens
from allsight.data.world.drives.road import Road, Span, Street
from allsight.data.world.vocabulary import Rgb

_HAZE_M = 140.0
"""Where half of what is seen is haze."""
_PAINT: Rgb = (226, 224, 214)
_YELLOW: Rgb = (222, 188, 84)
_LINE_M = 0.16
_DASH_ON_M, _DASH_OFF_M = 3.0, 6.0


def hazed(depth_m: np.ndarray | float) -> np.ndarray | float:
    """Share of haze in what is seen at a depth."""
    return depth_m / (depth_m + _HAZE_M)


def paint_ground(
    drive: Drive,
    lens: Lens,
    world_from_cam: Float[np.ndarray, "4 4"],
    dark: Bool[np.ndarray, "h w"] | None = None,
) -> Float32[np.ndarray, "3 h w"]:
    """Colours, 0..255; `dark` says where the ground lies in a shadow."""
    height, width = lens.hw_px
    across = ((np.arange(width, dtype=np.float32) + 0.5) - width / 2) * (1.0 / lens.focal_px)
    down = ((np.arange(height, dtype=np.float32) + 0.5) - height / 2) * (1.0 / lens.focal_px)
    turn = world_from_cam[:3, :3].astype(np.float32)
    # Direction of each pixel in the world, at depth 1.
    rising = turn[2, 0] * across + (turn[2, 1] * down + turn[2, 2])[:, None]
    weather = drive.weather
    light = weather.ambient + weather.direct * weather.sun[2]
    colours = _sky(drive, rising)
    below = np.flatnonzero(rising < -0.012)
    if below.size == 0:
        return colours.reshape(3, height, width)
    row, column = np.divmod(below, width)
    u, v = across[column], down[row]
    depth = np.float32(world_from_cam[2, 3]) / -rising.ravel()[below]
    x = depth * (turn[0, 0] * u + turn[0, 1] * v + turn[0, 2])
    y = depth * (turn[1, 0] * u + turn[1, 1] * v + turn[1, 2])
    # Places are counted from the camera as long as they are float32; the camera's own are added in float64.
    ground = _street(drive, x + world_from_cam[0, 3], y + world_from_cam[1, 3], depth * (1.0 / lens.focal_px))
    ground *= light
    if dark is not None:
        left = weather.ambient / light
        ground *= np.where(dark.ravel()[below], np.float32(left), np.float32(1.0))
    ground += (_column(weather.haze_rgb) * np.float32(min(1.0, light)) - ground) * hazed(depth)
    colours[:, below] = ground
    return colours.reshape(3, height, width)


def _sky(drive: Drive, rising: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "3 n"]:
    weather = drive.weather
    share = np.minimum(np.maximum(rising.ravel() * 2.2, 0), 1)
    colours = _column(weather.sky_rgb) - _column(weather.haze_rgb)
    colours = colours * share + _column(weather.haze_rgb)
    colours *= min(1.0, weather.ambient + weather.direct)
    return colours.astype(np.float32)


def _street(drive: Drive, x: np.ndarray, y: np.ndarray, footprint: np.ndarray) -> Float32[np.ndarray, "3 n"]:
    """Colours of places on the ground in white light; `footprint` is the width of a pixel there."""
    street, weather = drive.street, drive.weather
    near_x, near_y = x - street.main.x, y - street.main.y
    patches = look_up(smooth_noise(), near_y * 6.0 + street.texture[0], near_x * 6.0 + street.texture[1])
    grains = look_up(grain(), near_y * 16.0 + street.texture[1], near_x * 16.0 + street.texture[0]) - 0.5
    colours = _column(weather.ground_rgb) * (0.82 + 0.36 * patches)
    places = [(road, *_local(road, x, y)) for road in street.roads]
    for road, _, d in places:
        _cover(colours, (168, 164, 156), _between(d, road.built_up, footprint))
    for road, _, d in places:
        _cover(colours, weather.asphalt_rgb, _between(d, road.carriageway, footprint))
        for edge in road.carriageway:
            _cover(colours, (186, 182, 172), _line(d - edge, footprint, 0.24) * _open(street, road, places))
    for road, s, d in places:
        _lines(colours, street, road, s, d, footprint, _open(street, road, places))
    for first, last in street.crossings:
        _, s, d = places[0]
        stripes = np.abs(_phase(d, 1.0) - 0.5) < 0.25
        on = _between(s, (first, last), footprint) * _between(d, street.main.carriageway, footprint)
        _cover(colours, _PAINT, on * np.where(footprint > 0.5, np.float32(0.5), stripes.astype(np.float32)))
    colours += grains * (22.0 / (1.0 + 12.0 * footprint))
    return colours


def _local(road: Road, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s, d = road.locate(x, y)
    return s.astype(np.float32), d.astype(np.float32)


def _open(
    street: Street, road: Road, places: list[tuple[Road, np.ndarray, np.ndarray]]
) -> np.ndarray | float:
    """1 where a road's own markings are, 0 on the junction."""
    if street.junction is None:
        return 1.0
    other = places[1] if road is street.main else places[0]
    if road is street.main:
        s = places[0][1]
        return ((s < street.junction[0]) | (s > street.junction[1])).astype(np.float32)
    d = other[2]
    low, high = street.main.carriageway
    return ((d < low) | (d > high)).astype(np.float32)


def _lines(
    colours: np.ndarray,
    street: Street,
    road: Road,
    s: np.ndarray,
    d: np.ndarray,
    footprint: np.ndarray,
    where: np.ndarray | float,
) -> None:
    """Lines between lanes: dashed within a direction, solid and yellow between the two."""
    period = _DASH_ON_M + _DASH_OFF_M
    dashes = np.where(
        footprint > 0.4, np.float32(_DASH_ON_M / period), _phase(s, period) < _DASH_ON_M / period
    )
    for place, parts_ways in road.dividers:
        share = _line(d - place, footprint, _LINE_M) * where
        _cover(colours, _YELLOW if parts_ways else _PAINT, share if parts_ways else share * dashes)


def _phase(values: np.ndarray, period: float) -> np.ndarray:
    turns = values * (1.0 / period)
    return turns - np.floor(turns)


def _between(d: np.ndarray, span: Span, footprint: np.ndarray) -> np.ndarray:
    """1 inside a span, 0 outside, blurred over a pixel."""
    inside = np.minimum(d - span[0], span[1] - d) / footprint + 0.5
    return np.minimum(np.maximum(inside, 0), 1)


def _line(away: np.ndarray, footprint: np.ndarray, width: float) -> np.ndarray:
    """Cover by a line of a width; what is narrower than a pixel is painted thinly."""
    share = (0.5 * width - np.abs(away)) / footprint + 0.5
    return np.minimum(np.maximum(share, 0), np.minimum(1.0, width / footprint))


def _column(rgb: Rgb) -> Float32[np.ndarray, "3 1"]:
    return np.array(rgb, dtype=np.float32)[:, None]


def _cover(colours: np.ndarray, rgb: Rgb, share: np.ndarray) -> None:
    colours += (_column(rgb) - colours) * share
