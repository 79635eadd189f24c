"""Drawing drives: a drive follows from (seed, split, index) and the options alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from allsight.data.world.drives.drive import FRAME_S, Drive, Lens, Path, Thing, Track, Weather, pose
from allsight.data.world.drives.models import MODELS
from allsight.data.world.drives.options import Drives
from allsight.data.world.drives.road import Road, Street
from allsight.data.world.sampling import SPLITS, Draws, mix
from allsight.data.world.vocabulary import Rgb

CAMERA_YAWS_DEG = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -60,
    "CAM_FRONT_LEFT": 60,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 120,
    "CAM_BACK_RIGHT": -120,
}
"""The rig: a ring of six, named and ordered as nuScenes' cameras."""

LOCATIONS = ("singapore-onenorth", "boston-seaport", "singapore-queenstown", "singapore-hollandvillage")
"""Names of maps that the devkit knows; the streets have nothing to do with these places."""

_GRID_M = 400.0
_ROW = 16


def scene_name(split: str, index: int) -> str:
    """As the devkit wants it for CAN bus data: `scene-` and a number."""
    return f"scene-{(0, 5_000_000)[SPLITS.index(split)] + index + 1:04d}"


def location_of(index: int) -> str:
    return LOCATIONS[index % len(LOCATIONS)]


def sample_drive(config: Drives.Config, split: str, index: int) -> Drive:
    """Draw a drive.

    Args:
        config: Options.
        split: "train" or "val"; they share no street.
        index: From 0.
    """
    draws = Draws(config.seed, split, "drives", index)
    street = _street(draws, config, split, index)
    path = _path(draws, config, street)
    things = _Traffic(draws, config, street, path).things()
    return Drive(
        name=scene_name(split, index),
        split=split,
        street=street,
        path=path,
        things=tuple(things),
        rig=_rig(draws, config),
        weather=_weather(draws),
        frames=config.frames,
        noise=round(40 * config.noise * draws.number(0.3, 1.0)),
        noise_key=draws.integer(0, 2**53 - 1),
    )


def _street(draws: Draws, config: Drives.Config, split: str, index: int) -> Street:
    # Scenes lie on a grid, far enough from one another that no picture sees two; a location's row by row.
    place = index // len(LOCATIONS)
    row, column = divmod(place, _ROW)
    row += 0 if split == "train" else 4096
    x, y = _GRID_M * (column + 0.5), _GRID_M * (row + 0.5)
    heading = draws.number(-math.pi, math.pi)
    bent = draws.chance(0.7)
    curvature = (1 if draws.chance(0.5) else -1) / draws.number(25.0, 110.0) if bent else 0.0
    bend = min(draws.number(20.0, 70.0), 1.5 / abs(curvature)) if bent else 0.0
    lanes = ((1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (2, 0), (3, 0))[draws.integer(0, 6)]
    lane = draws.number(3.1, 3.8)
    main = Road(
        x,
        y,
        heading,
        curvature,
        bend,
        *lanes,
        lane,
        (2.2 if draws.chance(0.5) else 0.0, 2.2 if draws.chance(0.5) else 0.0),
        draws.number(1.8, 4.0),
    )
    cross, cross_s = None, 0.0
    if draws.chance(0.6):
        before = draws.chance(0.5)
        cross_s = draws.number(-45.0, -12.0) if before else bend + draws.number(12.0, 45.0)
        cx, cy, along = main.place(cross_s, 0.0)
        lanes = ((1, 1), (1, 1), (2, 1), (1, 2))[draws.integer(0, 3)]
        cross = Road(
            float(cx),
            float(cy),
            float(along) + math.pi / 2,
            0.0,
            0.0,
            *lanes,
            lane,
            (0.0, 0.0),
            draws.number(1.8, 3.0),
        )
    zebra, texture = draws.chance(0.6), (draws.integer(0, 4095), draws.integer(0, 4095))
    street = Street(main, cross, cross_s, zebra, (), texture)
    return replace(street, houses=_houses(draws, config, street))


def _houses(draws: Draws, config: Drives.Config, street: Street) -> tuple:
    houses = []
    right, left = street.main.built_up
    for side, edge in ((-1, right), (1, left)):
        s = -70.0
        while s < street.main.bend_m + 70.0:
            length = draws.number(6.0, 11.0)
            depth, height, colour = draws.number(5.0, 9.0), draws.number(3.5, 9.0), draws.number(0.0, 1.0)
            gap = draws.number(0.5, 5.0)
            if draws.chance(config.buildings):
                d = edge + side * (0.5 * depth + draws.number(0.5, 6.0))
                x, y, heading = (float(v) for v in street.main.place(s + 0.5 * length, d))
                if _is_clear(street, x, y, 0.6 * math.hypot(length, depth)):
                    houses.append((x, y, heading, length, depth, height, colour))
            s += length + gap
    return tuple(houses)


def _is_clear(street: Street, x: float, y: float, radius: float) -> bool:
    """Whether a round place is on no street."""
    for road in street.roads:
        _, d = (float(v[0]) for v in road.locate(np.array([x]), np.array([y])))
        right, left = road.built_up
        if right - 0.7 * radius < d < left + 0.7 * radius:
            return False
    return True


def _path(draws: Draws, config: Drives.Config, street: Street) -> Path:
    """The car's way and speed."""
    main, cross = street.main, street.cross
    lane = draws.integer(0, main.lanes_right - 1)
    speed, rate = draws.number(2.0, 11.0), draws.number(-1.8, 1.5)
    middle = draws.number(-15.0, main.bend_m + 15.0)
    special = draws.chance(0.62 * config.manoeuvres)
    manoeuvre = (
        ("stand", "reverse", "change", "turn", "crossing", "turn")[draws.integer(0, 5)] if special else "keep"
    )
    if manoeuvre in ("turn", "crossing") and cross is None:
        manoeuvre = "change"
    aside = draws.number(-0.35, 0.35)
    if manoeuvre == "stand":
        speed, rate = 0.0, 0.0
    if manoeuvre == "reverse":
        speed, rate = -draws.number(0.8, 2.5), 0.0
    if manoeuvre == "turn":
        assert cross is not None
        speed, rate = draws.number(2.5, 6.5), draws.number(-0.5, 1.0)
        stations, turning = _turn(draws, street, lane)
        return Path(stations, turning - draws.number(0.3, 2.2) * speed, speed, rate)
    road, start = main, middle
    if manoeuvre == "crossing":
        assert cross is not None
        road, lane, start = cross, draws.integer(0, cross.lanes_right - 1), draws.number(-18.0, 8.0)
    s = np.arange(-100.0, road.bend_m + 100.0, 0.5)
    d = np.full(s.shape, road.lane_middle(lane) + aside)
    if manoeuvre == "change":
        # Over to the next lane, or around something beside the lane and back.
        wide = (
            road.lane_m
            if lane > 0
            else -road.lane_m
            if lane + 1 < road.lanes_right
            else draws.number(0.8, 1.5)
        )
        at, over = start + draws.number(2.0, 12.0), draws.number(12.0, 25.0)
        share = np.clip((s - at) / over, 0.0, 1.0)
        d += wide * share * share * (3.0 - 2.0 * share)
    return Path(_stations(*road.place(s, d)[:2]), float(start - s[0]), speed, rate)


def _turn(draws: Draws, street: Street, lane: int) -> tuple[np.ndarray, float]:
    """A turn from the main road into the one that crosses it, and the distance at which it begins."""
    main, cross = street.main, street.cross
    assert cross is not None
    left = draws.chance(0.5)
    # All in the frame of the junction: x along the main road, y to its left.
    d_in = main.lane_middle(0 if left else main.lanes_right - 1)
    # Keeping to the right; the crossing road's left is where the main road comes from.
    x_out = -cross.lane_middle(0 if left else -1)
    radius = draws.number(9.0, 13.0) if left else draws.number(6.0, 9.0)
    side = 1.0 if left else -1.0
    begin = x_out - radius
    before = np.arange(begin - 60.0, begin, 0.5)
    angle = np.arange(0.0, math.pi / 2, 0.5 / radius)
    after = np.arange(0.0, 60.0, 0.5)
    x = np.concatenate([before, begin + radius * np.sin(angle), np.full(after.shape, x_out)])
    y = np.concatenate(
        [
            np.full(before.shape, d_in),
            d_in + side * radius * (1.0 - np.cos(angle)),
            d_in + side * (radius + after),
        ]
    )
    cx, cy, heading = (float(v) for v in main.place(street.cross_s, 0.0))
    cos, sin = math.cos(heading), math.sin(heading)
    return _stations(cx + cos * x - sin * y, cy + sin * x + cos * y), float(len(before)) * 0.5


def _stations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance, place and heading along points of a way."""
    step = np.hypot(np.diff(x), np.diff(y))
    distance = np.concatenate([[0.0], np.cumsum(step)])
    heading = np.unwrap(np.arctan2(np.gradient(y), np.gradient(x)))
    return np.stack([distance, x, y, heading], axis=1)


def _rig(draws: Draws, config: Drives.Config) -> dict[str, Lens]:
    height, width = config.hw_px
    loose = config.jitter
    focal = 0.5 * width / math.tan(math.radians(35.0)) * (1.0 + loose * draws.number(-0.05, 0.05))
    above = 1.6 + loose * draws.number(-0.15, 0.15)
    rig = {}
    for name, usual in CAMERA_YAWS_DEG.items():
        yaw = math.radians(usual + loose * draws.number(-4.0, 4.0))
        pitch = math.radians(3.0 + loose * draws.number(-1.5, 1.5))
        roll = math.radians(loose * draws.number(-1.0, 1.0))
        mount = pose(0.9 + 0.6 * math.cos(yaw), 0.5 * math.sin(yaw), yaw, above)
        down, tilt = _turned_about(1, pitch), _turned_about(0, roll)
        axes = np.array(
            [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
        )
        rig[name] = Lens(mount @ down @ tilt @ axes, focal, (height, width), draws.number(-0.02, 0.02))
    return rig


def _turned_about(axis: int, angle: float) -> np.ndarray:
    """Rotation about x, y or z."""
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix = np.eye(4)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[second, first] = math.sin(angle)
    matrix[first, second] = -matrix[second, first]
    return matrix


def _weather(draws: Draws) -> Weather:
    azimuth, elevation = draws.number(-math.pi, math.pi), draws.number(0.35, 1.2)
    flat = math.cos(elevation)
    kind = ("clear", "clear", "dull", "dusk")[draws.integer(0, 3)]
    direct, ambient = {"clear": (0.6, 0.55), "dull": (0.12, 0.85), "dusk": (0.28, 0.42)}[kind]
    sky: Rgb = {"clear": (104, 160, 226), "dull": (178, 186, 194), "dusk": (84, 84, 128)}[kind]
    haze: Rgb = {"clear": (206, 222, 236), "dull": (200, 204, 208), "dusk": (226, 160, 122)}[kind]
    bright = draws.number(0.85, 1.15)
    ground = ((104, 140, 78), (150, 142, 116), (172, 160, 132))[draws.integer(0, 2)]
    grey = draws.integer(78, 120)
    return Weather(
        sun=(math.cos(azimuth) * flat, math.sin(azimuth) * flat, math.sin(elevation)),
        direct=direct * bright,
        ambient=ambient * bright,
        sky_rgb=draws.vary(sky, 12),
        haze_rgb=draws.vary(haze, 12),
        ground_rgb=draws.vary(ground, 14),
        asphalt_rgb=draws.vary((grey, grey, grey + 4), 5),
    )


_SHARES = {
    "car": 24,
    "truck": 10,
    "bus": 9,
    "trailer": 9,
    "motorcycle": 11,
    "bicycle": 12,
    "pedestrian": 17,
    "zone": 8,
}
"""How often each kind of thing is drawn, in percent."""
_TRIES = 12


class _Traffic:
    """Puts things into a street, one after the other, where they hit nothing at any moment."""

    def __init__(self, draws: Draws, config: Drives.Config, street: Street, path: Path) -> None:
        self.draws, self.config, self.street, self.path = draws, config, street, path
        self._times = np.arange(-1, self.config.frames + 1) * FRAME_S
        car = np.array([self.path.at(float(t)) for t in self._times])
        # The car as two discs: its middle is 1.4 m ahead of its rear axle.
        ahead = np.stack([np.cos(car[:, 2]), np.sin(car[:, 2])], axis=1)
        self._car = car
        self._discs = [(car[:, :2] + shift * ahead, 1.2) for shift in (0.2, 2.4)]
        self._found: list[Thing] = []

    def things(self) -> list[Thing]:
        for _ in range(self.draws.integer(*self.config.objects)):
            kind = self._kind()
            if kind == "zone":
                self._zone()
                continue
            for _ in range(_TRIES):
                if self._add(kind):
                    break
        return self._found

    def _kind(self) -> str:
        pick = self.draws.number(0.0, 100.0)
        for kind, share in _SHARES.items():
            pick -= share
            if pick < 0:
                return kind
        return "car"

    def _add(self, name: str) -> bool:
        """Try one place for a thing of a class."""
        draws = self.draws
        road, near = self._road_and_station()
        s = near + draws.number(-32.0, 38.0)
        if name == "pedestrian":
            track = self._walk(road, s)
        elif name == "trailer" and draws.chance(0.5):
            return self._lorry(road, s)
        else:
            track = self._ride(name, road, s)
        return self._place([self._thing(name, track)])

    def _road_and_station(self) -> tuple[Road, float]:
        """A road, mostly the main one, and where the car is beside it halfway through the scene."""
        cross = self.street.cross
        road = cross if cross is not None and self.draws.chance(0.3) else self.street.main
        x, y, _ = self._car[len(self._car) // 2]
        s, _ = road.locate(np.array([x]), np.array([y]))
        return road, float(s[0])

    def _ride(self, name: str, road: Road, s: float) -> Track:
        """Along a lane, in a parking strip, or standing at the side."""
        draws = self.draws
        against = bool(road.lanes_left) and draws.chance(0.5)
        lanes = road.lanes_left if against else road.lanes_right
        strip = road.parking_m[1 if against else 0]
        still = draws.number(0.0, 1.0)
        middle = 0.5 * (self.config.frames - 1) * FRAME_S
        speed = draws.number(*MODELS[name].speed_mps)
        edge = road.carriageway[1 if against else 0]
        inward = -1.0 if against else 1.0
        if still < 0.3 and name != "bus":
            d = edge + inward * (0.5 * strip if strip else draws.number(0.9, 1.4))
            if name in ("bicycle", "motorcycle"):
                d = edge - inward * draws.number(0.5, 1.2)
            speed = 0.0
        elif name == "bicycle":
            d = edge + inward * (strip + draws.number(0.5, 0.9))
        else:
            number = draws.integer(0, lanes - 1)
            d = road.lane_middle(-1 - number if against else number) + draws.number(-0.3, 0.3)
            if still < 0.45:
                speed = 0.0
        way = -speed if against else speed
        turn = math.pi if against else 0.0
        return Track(road, round(s - way * middle, 3), d, way, 0.0, turn + draws.number(-0.05, 0.05))

    def _walk(self, road: Road, s: float) -> Track:
        draws = self.draws
        right, left = road.carriageway
        middle = 0.5 * (self.config.frames - 1) * FRAME_S
        speed = draws.number(0.6, 2.0) * (1 if draws.chance(0.5) else -1)
        if draws.chance(0.25):
            # Over the road.
            d = draws.number(right - 1.0, left + 1.0)
            return Track(road, s, round(d - speed * middle, 3), 0.0, speed, math.copysign(math.pi / 2, speed))
        d = (
            right - draws.number(0.4, road.walk_m - 0.4)
            if draws.chance(0.5)
            else left + draws.number(0.4, road.walk_m - 0.4)
        )
        if draws.chance(0.25):
            return Track(road, s, d, 0.0, 0.0, draws.number(-math.pi, math.pi))
        return Track(road, round(s - speed * middle, 3), d, speed, 0.0, 0.0 if speed > 0 else math.pi)

    def _lorry(self, road: Road, s: float) -> bool:
        """A truck and the trailer behind it."""
        track = self._ride("truck", road, s)
        truck = self._thing("truck", track)
        trailer = self._thing("trailer", track)
        behind = 0.5 * (truck.size_lwh_m[0] + trailer.size_lwh_m[0]) + 0.5
        way = math.copysign(1.0, math.cos(track.turn_rad))
        drawn = Track(road, track.s_m - way * behind, track.d_m, track.speed_s_mps, 0.0, track.turn_rad)
        return self._place([truck, self._thing("trailer", drawn, trailer.size_lwh_m)])

    def _zone(self) -> None:
        """A construction site at the edge of the road: cones, barriers, perhaps a machine."""
        draws = self.draws
        road, near = self._road_and_station()
        left = draws.chance(0.5)
        inward = -1.0 if left else 1.0
        edge = road.carriageway[1 if left else 0]
        s = near + draws.number(-14.0, 20.0)
        d = edge + inward * draws.number(0.2, 1.6)
        if draws.chance(0.75):
            machine = Track(
                road,
                s + draws.number(3.0, 9.0),
                edge - inward * draws.number(0.8, 2.0),
                0.0,
                0.0,
                draws.number(-0.6, 0.6) + (math.pi if left else 0.0),
            )
            self._place([self._thing("construction_vehicle", machine)])
        for _ in range(draws.integer(2, 4)):
            s += draws.number(1.6, 3.2)
            self._place(
                [self._thing("traffic_cone", Track(road, s, d + draws.number(-0.2, 0.2), 0.0, 0.0, 0.0))]
            )
        for _ in range(draws.integer(1, 3)):
            s += draws.number(2.6, 3.0)
            turn = math.pi / 2 + draws.number(-0.2, 0.2)
            self._place([self._thing("barrier", Track(road, s, d, 0.0, 0.0, turn))])

    def _thing(self, name: str, track: Track, size: tuple[float, float, float] | None = None) -> Thing:
        model, draws = MODELS[name], self.draws
        if size is None:
            sides = (round(side * (1.0 + draws.number(-model.vary, model.vary)), 3) for side in model.size_m)
            size = next(sides), next(sides), next(sides)
        rgb = draws.vary(model.colours[draws.integer(0, len(model.colours) - 1)], 10)
        return Thing(name, size, mix(rgb, (128, 128, 128), 0.1), track)

    def _place(self, things: list[Thing]) -> bool:
        """Keep them if they touch nothing at any moment; all or none."""
        discs = []
        for thing in things:
            places = np.array([thing.track.at(float(t)) for t in self._times])
            length, width, _ = thing.size_lwh_m
            ahead = np.stack([np.cos(places[:, 2]), np.sin(places[:, 2])], axis=1)
            # A row of discs along the longer side.
            count = max(1, round(length / max(width, 0.5)))
            reach = 0.5 * (length - length / count)
            for shift in np.linspace(-reach, reach, count):
                discs.append((places[:, :2] + shift * ahead, 0.5 * math.hypot(width, length / count)))
        for points, radius in discs:
            for others, other in self._discs:
                if (((points - others) ** 2).sum(axis=1) < (0.92 * (radius + other)) ** 2).any():
                    return False
        self._discs += discs
        self._found += things
        return True
