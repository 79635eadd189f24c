"""The map classes of a moment: what of a vector map, and which boxes, each cell of a grid belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from allsight.data.driving.poses import heading
from allsight.data.driving.raster import Polygon, draw_lines, fill_polygons
from allsight.data.driving.vector_map import VectorMap
from allsight.types import BEVGrid, BEVMap

VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")


@dataclass(frozen=True)
class MapClass:
    """What a class is made of.

    Args:
        layers: Of the vector map: areas are filled, lines drawn.
        boxes: Names of classes whose boxes are filled.
    """

    layers: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()


PROTOCOLS: Mapping[str, Mapping[str, MapClass]] = {
    "lift_splat": {
        "car": MapClass(boxes=("car",)),
        "vehicles": MapClass(boxes=VEHICLES),
        "road": MapClass(("drivable_area",)),
        "lane": MapClass(("road_divider", "lane_divider")),
    },
    "bevfusion": {
        "drivable_area": MapClass(("drivable_area",)),
        "ped_crossing": MapClass(("ped_crossing",)),
        "walkway": MapClass(("walkway",)),
        "stop_line": MapClass(("stop_line",)),
        "carpark_area": MapClass(("carpark_area",)),
        "divider": MapClass(("road_divider", "lane_divider")),
    },
}
"""Classes that papers report: Lift-Splat (arXiv:2008.05711; BEVFormer too) and BEVFusion (arXiv:2205.13542).

Both use 100 x 100 m in cells of half a metre.
"""


def ground_pose(world_from_ref: Float[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3 3"]:
    """Reference frame to world on the ground: its heading and place, without tilt.

    Source: nutonomy/nuscenes-devkit:python-sdk/nuscenes/map_expansion/map_api.py (a patch turned by the yaw).
    """
    yaw = float(heading(world_from_ref[:3, :3]))
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y = world_from_ref[:2, 3]
    return np.array([[cos, -sin, x], [sin, cos, y], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class MapMasks:
    """Makes the target `bev_map`.

    Args:
        grid: Cells.
        classes: Class -> what it is made of, such as `PROTOCOLS["lift_splat"]`.
        line_m: Width of lines; published figures leave it open, 2 cells of half a metre are usual.
        cache: Folder in which masks are kept, by token and settings.
    """

    grid: BEVGrid
    classes: Mapping[str, MapClass]
    line_m: float = 1.0
    cache: Path | None = None

    def of(
        self,
        token: str,
        world_from_ref: Float[np.ndarray, "4 4"],
        vector_map: VectorMap | None,
        footprints_m: Mapping[str, Sequence[np.ndarray]],
    ) -> BEVMap:
        """The classes of a moment.

        Args:
            token: Its name, for the cache.
            world_from_ref: Where it is.
            vector_map: Of the place; may be None where no class needs it.
            footprints_m: Class of boxes -> corners [4, 2] of each in the reference frame.
        """
        file = None if self.cache is None else self.cache / f"{token}-{self._key()}.npy"
        shape = (len(self.classes), *self.grid.hw)
        if file is not None and file.is_file():
            packed = np.load(file)
            masks = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
            return BEVMap(torch.from_numpy(masks), self.grid, tuple(self.classes))
        masks = np.stack(
            [self._mask(cls, world_from_ref, vector_map, footprints_m) for cls in self.classes.values()]
        )
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{np.random.default_rng().integers(1 << 62)}.part")
            with partial.open("wb") as out:
                np.save(out, np.packbits(masks))
            partial.replace(file)
        return BEVMap(torch.from_numpy(masks), self.grid, tuple(self.classes))

    def _mask(
        self,
        cls: MapClass,
        world_from_ref: Float[np.ndarray, "4 4"],
        vector_map: VectorMap | None,
        footprints_m: Mapping[str, Sequence[np.ndarray]],
    ) -> Bool[np.ndarray, "h w"]:
        boxes: list[Polygon] = [[corners] for name in cls.boxes for corners in footprints_m.get(name, ())]
        mask = fill_polygons(boxes, self.grid)
        if not cls.layers or vector_map is None:
            return mask
        pose = ground_pose(world_from_ref)
        low, high = self._rectangle(pose)
        areas, lines = [], []
        for is_area, item in vector_map.near(cls.layers, low, high):
            # Row vectors, hence the inverse turn is the turn itself.
            moved = [(ring - pose[:2, 2]) @ pose[:2, :2] for ring in item]
            (areas if is_area else lines).append(moved if is_area else moved[0])
        return mask | fill_polygons(areas, self.grid) | draw_lines(lines, self.line_m, self.grid)

    def _rectangle(
        self, pose: Float64[np.ndarray, "3 3"]
    ) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, " 2"]]:
        """What of the world the grid may touch."""
        x, y = (self.grid.range_m[0], self.grid.range_m[3]), (self.grid.range_m[1], self.grid.range_m[4])
        corners = np.array([(a, b) for a in x for b in y]) @ pose[:2, :2].T + pose[:2, 2]
        return corners.min(axis=0) - self.line_m, corners.max(axis=0) + self.line_m

    def _key(self) -> str:
        said = repr((self.grid, sorted(self.classes.items()), list(self.classes), self.line_m))
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
