"""Vector maps: areas with holes and lines, in the world's ground plane, metres."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from allsight.data.driving.raster import Polygon
from allsight.types import DataError

_POLYGONS = ("road_segment", "road_block", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area")
_LINES = ("road_divider", "lane_divider")
_UNPAINTED = frozenset({"NONE", "UNKNOWN"})


@dataclass(frozen=True)
class VectorMap:
    """A map of a place.

    Args:
        areas: Layer -> polygons.
        lines: Layer -> lines [n, 2].
    """

    areas: Mapping[str, Sequence[Polygon]]
    lines: Mapping[str, Sequence[np.ndarray]]

    def near(
        self, layers: Sequence[str], low: Float[np.ndarray, " 2"], high: Float[np.ndarray, " 2"]
    ) -> Iterator[tuple[bool, Polygon]]:
        """(whether it is an area, its outline and holes or the one line) of what meets a rectangle.

        Raises:
            DataError: The map has no such layer.
        """
        for layer in layers:
            if layer not in self._bounds:
                known = ", ".join(self._bounds)
                raise DataError(f"map: no layer {layer!r}; it has {known}")
            bounds = self._bounds[layer]
            meets = (bounds[:, :2] <= high).all(axis=1) & (bounds[:, 2:] >= low).all(axis=1)
            for n in np.flatnonzero(meets).tolist():
                if layer in self.areas:
                    yield True, self.areas[layer][n]
                else:
                    yield False, [self.lines[layer][n]]

    @cached_property
    def _bounds(self) -> dict[str, Float64[np.ndarray, "n 4"]]:
        """x_min, y_min, x_max, y_max of each item of each layer."""
        outlines = {layer: [polygon[0] for polygon in items] for layer, items in self.areas.items()}
        return {
            layer: np.array([[*item.min(axis=0), *item.max(axis=0)] for item in items]).reshape(-1, 4)
            for layer, items in {**outlines, **self.lines}.items()
        }


def read_nuscenes_map(file: Path) -> VectorMap:
    """nuScenes' map expansion, `maps/expansion/LOCATION.json`, version 1.3 on.

    Raises:
        DataError: No such file, not JSON, a missing layer, or a token that no row has (named).
    """
    tree = _parsed(file, ("node", "polygon", "line", "drivable_area"))
    try:
        nodes = {row["token"]: (row["x"], row["y"]) for row in tree["node"]}

        def points(tokens: Sequence[str]) -> np.ndarray:
            return np.array([nodes[token] for token in tokens], dtype=np.float64).reshape(-1, 2)

        polygons = {
            row["token"]: [
                points(row["exterior_node_tokens"]),
                *(points(h["node_tokens"]) for h in row["holes"]),
            ]
            for row in tree["polygon"]
        }
        lines = {row["token"]: points(row["node_tokens"]) for row in tree["line"]}
        areas = {
            "drivable_area": [polygons[t] for row in tree["drivable_area"] for t in row["polygon_tokens"]]
        }
        for layer in _POLYGONS:
            areas[layer] = [polygons[row["polygon_token"]] for row in tree.get(layer, ())]
        found = {layer: [lines[row["line_token"]] for row in tree.get(layer, ())] for layer in _LINES}
    except KeyError as error:
        raise DataError(
            f"{file}: token or field {error} is missing; the map is damaged or of an old version"
        ) from None
    return VectorMap(
        _kept(areas, 3), {layer: [line for line in some if len(line) > 1] for layer, some in found.items()}
    )


def read_argoverse_map(file: Path) -> VectorMap:
    """The vector map of an Argoverse 2 log, `log_map_archive_*.json`, with nuScenes' names of layers.

    `drivable_area` and `ped_crossing` are areas, as is `lane` (the ground between both boundaries of a lane
    segment). Painted boundaries of lane segments are `lane_divider`; those not painted are left out.

    Source: argoverse/av2-api:src/av2/map/map_api.py.
    Raises:
        DataError: No such file, not JSON, or another structure.
    """
    tree = _parsed(file, ("drivable_areas", "lane_segments", "pedestrian_crossings"))
    try:
        areas: dict[str, list[Polygon]] = {
            "drivable_area": [[_xy(row["area_boundary"])] for row in tree["drivable_areas"].values()],
            "ped_crossing": [
                [np.concatenate([_xy(row["edge1"]), _xy(row["edge2"])[::-1]])]
                for row in tree["pedestrian_crossings"].values()
            ],
            "lane": [],
        }
        painted: dict[bytes, np.ndarray] = {}
        for row in tree["lane_segments"].values():
            sides = {side: _xy(row[f"{side}_lane_boundary"]) for side in ("left", "right")}
            areas["lane"].append([np.concatenate([sides["left"], sides["right"][::-1]])])
            for side, line in sides.items():
                if row.get(f"{side}_lane_mark_type", "NONE") not in _UNPAINTED:
                    # Neighbours share a boundary, which is then listed twice.
                    painted[line.tobytes()] = line
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: no Argoverse 2 map ({error!r})") from None
    return VectorMap(_kept(areas, 3), {"lane_divider": list(painted.values()), "road_divider": []})


def read_map(file: Path) -> VectorMap:
    """A map of either kind."""
    return read_argoverse_map(file) if "lane_segments" in _parsed(file, ()) else read_nuscenes_map(file)


def _kept(areas: Mapping[str, Sequence[Polygon]], least: int) -> dict[str, list[Polygon]]:
    return {layer: [item for item in items if len(item[0]) >= least] for layer, items in areas.items()}


def _xy(points: Sequence[Mapping[str, float]]) -> Float64[np.ndarray, "n 2"]:
    return np.array([(point["x"], point["y"]) for point in points], dtype=np.float64).reshape(-1, 2)


def _parsed(file: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file}: no such map; expected the map expansion of the data set there") from None
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    missing = [name for name in needed if not isinstance(tree, dict) or name not in tree]
    if missing:
        raise DataError(f"{file}: no layer {missing[0]!r}; expected {', '.join(needed)} and others")
    return tree
