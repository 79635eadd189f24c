"""Roads: a straight piece, a bend, a straight piece; places on them and what is painted on them.

Frame of a road: s along its middle line from where its bend begins, d to the left of it, metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

Span = tuple[float, float]
"""From and to, metres."""


@dataclass(frozen=True)
class Road:
    """A road and its cross-section.

    Args:
        x, y, heading_rad: Where the bend begins, in the world.
        curvature: Of the bend, 1 / m, positive to the left; 0 for a straight road.
        bend_m: Length of the bend.
        lanes_right: Lanes that run along s.
        lanes_left: Lanes that run against it.
        lane_m: Their width.
        parking_m: Width of the parking strips, right and left; 0 for none.
        walk_m: Width of the pavements.
    """

    x: float
    y: float
    heading_rad: float
    curvature: float = 0.0
    bend_m: float = 0.0
    lanes_right: int = 1
    lanes_left: int = 1
    lane_m: float = 3.5
    parking_m: tuple[float, float] = (0.0, 0.0)
    walk_m: float = 2.5

    @property
    def carriageway(self) -> Span:
        """d of the right and the left edge of what is driven on, parking strips included."""
        right = -self.lanes_right * self.lane_m - self.parking_m[0]
        return right, self.lanes_left * self.lane_m + self.parking_m[1]

    @property
    def built_up(self) -> Span:
        """d of the outer edges of the pavements."""
        right, left = self.carriageway
        return right - self.walk_m, left + self.walk_m

    @property
    def dividers(self) -> tuple[tuple[float, bool], ...]:
        """d of every painted line between lanes, and whether it divides the two directions."""
        places = range(
            -self.lanes_right + (self.parking_m[0] == 0), self.lanes_left + (self.parking_m[1] > 0)
        )
        return tuple(
            (n * self.lane_m, n == 0 and bool(self.lanes_left) and bool(self.lanes_right)) for n in places
        )

    def lane_middle(self, number: int) -> float:
        """d of the middle of a lane; 0 is the innermost to the right, -1 the innermost to the left."""
        return (-number - 0.5) * self.lane_m

    def place(
        self, s: Float[np.ndarray, "*n"] | float, d: Float[np.ndarray, "*n"] | float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and the road's heading at places (s, d), in the world."""
        s, d = np.broadcast_arrays(np.asarray(s, dtype=float), np.asarray(d, dtype=float))
        if self.curvature:
            within = np.clip(s, 0.0, self.bend_m)
            turn, radius = within * self.curvature, 1.0 / self.curvature
            beyond = s - within
            sin, cos = np.sin(turn), np.cos(turn)
            x = (radius - d) * sin + beyond * cos
            y = radius - (radius - d) * cos + beyond * sin
        else:
            turn, x, y = np.zeros_like(s), s, d
        cos, sin = math.cos(self.heading_rad), math.sin(self.heading_rad)
        at = self.x + cos * x - sin * y, self.y + sin * x + cos * y, turn + self.heading_rad
        return np.asarray(at[0]), np.asarray(at[1]), np.asarray(at[2])

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """s and d of places in the world; far inside a bend the nearest piece is not always taken."""
        cos, sin = math.cos(self.heading_rad), math.sin(self.heading_rad)
        x, y = x - self.x, y - self.y
        x, y = cos * x + sin * y, cos * y - sin * x
        if not self.curvature:
            return x, y
        radius, turn = 1.0 / self.curvature, self.bend_m * self.curvature
        side = math.copysign(1.0, radius)
        ahead, out = x * side, (radius - y) * side
        far = np.sqrt(ahead * ahead + out * out)
        bend_s = radius * _angle(ahead, out, far)
        bend_d = radius - side * far
        # The frame in which the second straight piece begins.
        cos, sin = math.cos(turn), math.sin(turn)
        end_x, end_y = radius * sin, radius * (1.0 - cos)
        after_s = cos * (x - end_x) + sin * (y - end_y)
        after_d = cos * (y - end_y) - sin * (x - end_x)
        before, after = x < 0, (after_s > 0) & (bend_s > 0.5 * self.bend_m)
        s = np.where(before & ~after, x, np.where(after, self.bend_m + after_s, bend_s))
        d = np.where(before & ~after, y, np.where(after, after_d, bend_d))
        return s, d

    def strip(self, s: Span, d: Span, step_m: float = 2.0) -> Float[np.ndarray, "n 2"]:
        """Outline of the ground between two s and two d, in the world."""
        along = self._stations(s, step_m)
        x, y, _ = self.place(np.concatenate([along, along[::-1]]), np.repeat([d[0], d[1]], len(along)))
        return np.stack([x, y], axis=1)

    def line(self, s: Span, d: float, step_m: float = 2.0) -> Float[np.ndarray, "n 2"]:
        """A line along the road, in the world."""
        x, y, _ = self.place(self._stations(s, step_m), d)
        return np.stack([x, y], axis=1)

    def _stations(self, s: Span, step_m: float) -> np.ndarray:
        """Places along a span: its ends, and in the bend one every few metres."""
        bend = np.arange(0.0, self.bend_m + step_m, step_m).clip(0.0, self.bend_m)
        return np.unique(np.concatenate([[s[0], s[1]], bend[(bend > s[0]) & (bend < s[1])]]))


def _angle(ahead: np.ndarray, out: np.ndarray, far: np.ndarray) -> np.ndarray:
    """The angle from `out` towards `ahead`, in -pi..pi, to 4e-6.

    From + - * / and roots alone, so that pictures do not depend on the machine's arctangent.
    """
    # Two halvings of the angle by tan(a / 2) = sin a / (1 + cos a) leave at most pi / 4.
    t = ahead / np.maximum(far + out, 1e-6 * far + 1e-12)
    t = np.clip(t, -1e6, 1e6)
    t = t / (1.0 + np.sqrt(1.0 + t * t))
    q = t * t
    series = 0.08528973 + q * (-0.03853225 + q * 0.00846127)
    return 4.0 * t * (1.0 + q * (-0.3332766 + q * (0.19893314 + q * (-0.13547242 + q * series))))


@dataclass(frozen=True)
class Street:
    """The streets of a scene: a main road, perhaps one that crosses it, and the houses beside them.

    Args:
        main: The road.
        cross: The road that crosses it; its s = 0 is where the middle lines meet.
        cross_s: s of the main road there.
        zebra: Whether the main road has pedestrian crossings at the junction.
        houses: Boxes beside the road: (x, y, heading, length, depth, height, colour 0..1).
        texture: Offset into the pattern of the ground.
    """

    main: Road
    cross: Road | None
    cross_s: float
    zebra: bool
    houses: tuple[tuple[float, float, float, float, float, float, float], ...]
    texture: tuple[int, int]

    REACH: ClassVar[float] = 110.0
    """How far the roads are drawn from where the bend begins and ends."""

    @property
    def junction(self) -> Span | None:
        """s of the main road that the carriageway of the crossing road covers."""
        if self.cross is None:
            return None
        right, left = self.cross.carriageway
        # The crossing road runs to the main road's left, so its left is the main road's s falling.
        return self.cross_s - left, self.cross_s - right

    @property
    def crossings(self) -> tuple[Span, ...]:
        """s of the pedestrian crossings over the main road."""
        if self.junction is None or not self.zebra:
            return ()
        first, last = self.junction
        return (first - 4.5, first - 1.5), (last + 1.5, last + 4.5)

    def open_spans(self, road: Road) -> tuple[Span, ...]:
        """Where along a road lines are painted and pavements run: not on the junction."""
        reach = (-self.REACH, road.bend_m + self.REACH)
        if self.cross is None or self.junction is None:
            return (reach,)
        first, last = self.junction if road is self.main else self.main.carriageway
        return (reach[0], first), (last, reach[1])

    @property
    def roads(self) -> tuple[Road, ...]:
        return (self.main,) if self.cross is None else (self.main, self.cross)
