"""The vector map of a street: areas and lines with nuScenes' names of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allsight.data.world.drives.road import Street

AREAS = ("drivable_area", "walkway", "ped_crossing", "carpark_area")
LINES = ("road_divider", "lane_divider")


@dataclass(frozen=True)
class Layers:
    """Areas (an outline and no holes) and lines by layer, in the world."""

    areas: dict[str, list[list[np.ndarray]]]
    lines: dict[str, list[np.ndarray]]

    @classmethod
    def joined(cls, layers: Sequence[Layers]) -> Layers:
        return cls(
            {name: [item for one in layers for item in one.areas[name]] for name in AREAS},
            {name: [item for one in layers for item in one.lines[name]] for name in LINES},
        )

    @property
    def edge_m(self) -> tuple[float, float]:
        """Width and height of a canvas, from the origin, that holds everything."""
        corners = [ring.max(axis=0) for items in self.areas.values() for polygon in items for ring in polygon]
        most = np.max(corners, axis=0)
        return float(np.ceil(most[0] + 10)), float(np.ceil(most[1] + 10))


def layers_of(street: Street) -> Layers:
    """What the street's ground is painted with, as a map."""
    layers = Layers({name: [] for name in AREAS}, {name: [] for name in LINES})
    for road in street.roads:
        reach = (-street.REACH, road.bend_m + street.REACH)
        layers.areas["drivable_area"].append([road.strip(reach, road.carriageway)])
        right, left = road.carriageway
        out_right, out_left = road.built_up
        for span in street.open_spans(road):
            layers.areas["walkway"] += [
                [road.strip(span, (out_right, right))],
                [road.strip(span, (left, out_left))],
            ]
            if road.parking_m[0]:
                layers.areas["carpark_area"].append([road.strip(span, (right, right + road.parking_m[0]))])
            if road.parking_m[1]:
                layers.areas["carpark_area"].append([road.strip(span, (left - road.parking_m[1], left))])
            for d, parts_ways in road.dividers:
                layers.lines["road_divider" if parts_ways else "lane_divider"].append(road.line(span, d))
    for span in street.crossings:
        layers.areas["ped_crossing"].append([street.main.strip(span, street.main.carriageway)])
    return layers
