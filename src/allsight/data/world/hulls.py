"""Shadows of the hulls of solids: what lies inside some straight borders on the ground.

A point casts its shadow against the light onto the ground. Seen along a direction (a, b) on the ground, the
farthest shadow is that of the point of the solid that is farthest along a direction in space, (a, b, c) with
c from the light; and of ellipsoids that point is known in closed form.

Letters in shapes: k borders (all solids' behind one another), n knobs of a solid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from allsight.data.world.solids import Point, Solid

Borders = tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]


class Hulls:
    """The convex hulls of some solids of one object.

    Attributes:
        spans: Of each solid, where its borders are.
    """

    def __init__(self, solids: Sequence[Solid]) -> None:
        widest = max(len(solid.knobs) for solid in solids)
        edges, centers, radii = [], [], []
        self.spans: list[slice] = []
        for solid in solids:
            # Each edge has the solid on its one side or on its other.
            here = [way for x, y, z in solid.edges for way in ((x, y, z), (-x, -y, -z))]
            self.spans.append(slice(len(edges), len(edges) + len(here)))
            edges += here
            knobs = (*solid.knobs, *[solid.knobs[0]] * (widest - len(solid.knobs)))
            centers += [[center for center, _ in knobs]] * len(here)
            radii += [[radius for _, radius in knobs]] * len(here)
        self._edges = np.array(edges, dtype=float).T
        self._centers = np.moveaxis(np.array(centers, dtype=float), 2, 0).copy()
        self._radii = np.moveaxis(np.array(radii, dtype=float), 2, 0).copy()
        self._is_round = bool(self._radii.any())

    def borders(self, light: Point) -> Borders:
        """The shadow of each solid is where a * x + b * y <= far for all of its borders (a, b, far).

        Args:
            light: Direction to it, in the object's frame; it must stand above the ground.
        """
        right, ahead = light[0] / light[2], light[1] / light[2]
        x, y, z = self._edges
        a, b = y - z * ahead, z * right - x
        c = -(right * a + ahead * b)
        (u, v, w), way = self._centers, (a[:, None], b[:, None], c[:, None])
        far = u * way[0] + v * way[1] + w * way[2]
        if self._is_round:
            u, v, w = self._radii
            far += np.sqrt((u * way[0]) ** 2 + (v * way[1]) ** 2 + (w * way[2]) ** 2)
        return a, b, far.max(axis=1)
