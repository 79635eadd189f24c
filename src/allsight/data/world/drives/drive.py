"""A drive: where the car and everything else is at every moment, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from allsight.data.world.drives.models import MODELS, Rgb
from allsight.data.world.drives.road import Road, Street

FRAME_S = 0.5
"""Between key frames."""


@dataclass(frozen=True)
class Track:
    """How a thing moves: along a road, or across it.

    Args:
        road: Whose frame the places are in.
        s_m, d_m: Place at time 0.
        speed_s_mps, speed_d_mps: Along the road and across it.
        turn_rad: Heading relative to the road's.
    """

    road: Road
    s_m: float
    d_m: float
    speed_s_mps: float
    speed_d_mps: float
    turn_rad: float

    def at(self, time_s: float) -> tuple[float, float, float]:
        """x, y and heading in the world."""
        x, y, heading = self.road.place(
            self.s_m + self.speed_s_mps * time_s, self.d_m + self.speed_d_mps * time_s
        )
        return float(x), float(y), float(heading) + self.turn_rad


@dataclass(frozen=True)
class Thing:
    """An object with a class of the benchmark."""

    name: str
    size_lwh_m: tuple[float, float, float]
    rgb: Rgb
    track: Track

    @property
    def radius_m(self) -> float:
        return 0.5 * math.hypot(self.size_lwh_m[0], self.size_lwh_m[1])

    @property
    def moves(self) -> bool:
        return bool(self.track.speed_s_mps or self.track.speed_d_mps)

    @property
    def attribute(self) -> str:
        return MODELS[self.name].attributes[0 if self.moves else 1]


@dataclass(frozen=True)
class Path:
    """The car's way: stations of x, y, heading, and how far along it the car is at each time.

    Args:
        stations: (distance, x, y, heading), distance rising from 0, close together.
        start_m: Distance at time 0.
        speed_mps: At time 0; negative drives backwards.
        acceleration_mps2: Until the car stands.
    """

    stations: Float[np.ndarray, "n 4"]
    start_m: float
    speed_mps: float
    acceleration_mps2: float

    def at(self, time_s: float) -> tuple[float, float, float]:
        """x, y and heading; times before the first frame are allowed."""
        speed, rate = self.speed_mps, self.acceleration_mps2
        if rate * speed < 0:
            time_s = min(time_s, -speed / rate)
        gone = self.start_m + speed * time_s + 0.5 * rate * time_s * time_s
        distance, x, y, heading = self.stations.T
        at_x, at_y, turned = (float(np.interp(gone, distance, column)) for column in (x, y, heading))
        return at_x, at_y, turned

    def speed_at(self, time_s: float) -> float:
        """Along the heading."""
        speed, rate = self.speed_mps, self.acceleration_mps2
        after = speed + rate * time_s
        return 0.0 if after * speed <= 0 else after


@dataclass(frozen=True)
class Lens:
    """A camera of the rig.

    Args:
        ego_from_cam: Camera (x right, y down, z ahead) to car (x ahead, y left, z up).
        focal_px: Focal length; pixels are square and the middle of the picture is the axis.
        hw_px: Size of the picture.
        delay_s: Its exposure after the frame's time.
    """

    ego_from_cam: Float[np.ndarray, "4 4"]
    focal_px: float
    hw_px: tuple[int, int]
    delay_s: float

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        height, width = self.hw_px
        return np.array([[self.focal_px, 0.0, width / 2], [0.0, self.focal_px, height / 2], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Weather:
    """Light and colours of a scene.

    Args:
        sun: Direction to the sun in the world, unit length.
        direct, ambient: Strengths of the light from the sun and from the sky.
        sky_rgb, haze_rgb, ground_rgb, asphalt_rgb: Colours.
    """

    sun: tuple[float, float, float]
    direct: float
    ambient: float
    sky_rgb: Rgb
    haze_rgb: Rgb
    ground_rgb: Rgb
    asphalt_rgb: Rgb


@dataclass(frozen=True)
class Drive:
    """A scene of a generated drive.

    Args:
        name: As `scene-0001`.
        split: "train" or "val".
        street: Roads and houses.
        path: Of the car.
        things: What else is there.
        rig: Camera -> lens.
        weather: Light.
        frames: Key frames.
        noise: Largest deviation of the cameras' noise in grey levels.
        noise_key: Key of that noise.
    """

    name: str
    split: str
    street: Street
    path: Path
    things: tuple[Thing, ...]
    rig: Mapping[str, Lens]
    weather: Weather
    frames: int
    noise: int
    noise_key: int

    def time_s(self, frame: int) -> float:
        return frame * FRAME_S

    def world_from_ego(self, time_s: float) -> Float[np.ndarray, "4 4"]:
        return pose(*self.path.at(time_s))


def pose(x: float, y: float, heading_rad: float, z: float = 0.0) -> Float[np.ndarray, "4 4"]:
    """A frame on the ground: x ahead, y left, z up."""
    cos, sin = math.cos(heading_rad), math.sin(heading_rad)
    return np.array([[cos, -sin, 0.0, x], [sin, cos, 0.0, y], [0.0, 0.0, 1.0, z], [0.0, 0.0, 0.0, 1.0]])
