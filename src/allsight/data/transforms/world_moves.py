"""Turning, scaling and mirroring the world around a car, with all that is annotated in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from allsight.data.transforms.rigs import mirrored, names_of, on_rigs, picked, rig_of
from allsight.types import BEVGrid, BEVMap, Boxes3D, BoxNotes, Rig, Sample

HISTORY = "history"
"""Target: the targets of the earlier frames of a clip, a tuple of dictionaries, oldest first."""


@dataclass(frozen=True)
class MoveWorld:
    """Turn, scale and mirror the ground plane around the reference frame's origin.

    All frames of a clip move alike, so that the motion between them stays true; their poses in the world move
    along. Mirroring also mirrors the pictures, and cameras called left and right change names: a mirrored
    world looks like mirrored pictures.

    Args:
        turn_rad: The turn is drawn evenly between this to the right and to the left.
        scale: The factor is drawn evenly between 1 - this and 1 + this. Pictures do not change with it.
        mirror: Probability of exchanging left and right of the car.

    Source: Huang et al., BEVDet, arXiv:2112.11790, section 3.2 (augmentation in BEV space).
    """

    turn_rad: float = 0.3
    scale: float = 0.0
    mirror: float = 0.5

    def __post_init__(self) -> None:
        if self.turn_rad < 0 or not 0 <= self.scale < 1 or not 0 <= self.mirror <= 1:
            raise ValueError(
                f"MoveWorld: expected turn >= 0, 0 <= scale < 1 and 0 <= mirror <= 1, got {self}"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        draws = rng.random(3)
        turn = (2 * float(draws[0]) - 1) * self.turn_rad
        scale = 1 + (2 * float(draws[1]) - 1) * self.scale
        return move_world(sample, turn, scale, is_mirrored=bool(draws[2] < self.mirror))


def move_world(sample: Sample, turn_rad: float, scale: float = 1.0, *, is_mirrored: bool = False) -> Sample:
    """The sample after its world was mirrored (left and right of the car), scaled and turned."""
    cos, sin = scale * math.cos(turn_rad), scale * math.sin(turn_rad)
    turn = torch.tensor(
        [[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, scale, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    new_from_ref = turn @ _reflection(rig_of(sample)) if is_mirrored else turn
    back = torch.linalg.inv(new_from_ref)

    def change(rig: Rig) -> Rig:
        rig = _renamed(mirrored(rig)) if is_mirrored else rig
        return replace(
            rig,
            **{
                name: (getattr(rig, name).double() @ back).to(getattr(rig, name))
                for name in ("img_from_ref", "ego_from_ref", "world_from_ref")
            },
        )

    sample = on_rigs(sample, change)
    return replace(sample, targets=_moved_targets(sample.targets, new_from_ref))


@dataclass(frozen=True)
class WithinRange:
    """Keep the boxes whose middle lies in a part of the ground.

    Args:
        range_m: x_min, y_min, x_max, y_max in the reference frame.
    """

    range_m: tuple[float, float, float, float]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, targets=self._kept(sample.targets))

    def _kept(self, targets: dict[str, Any]) -> dict[str, Any]:
        kept = dict(targets)
        boxes = targets.get("boxes")
        if isinstance(boxes, Boxes3D):
            low, high = boxes.centers_ref_m.new_tensor(self.range_m).chunk(2)
            places = boxes.centers_ref_m[:, :2]
            keep = ((places >= low) & (places <= high)).all(-1)
            kept["boxes"] = boxes.select(keep)
            notes = targets.get("box_notes")
            if isinstance(notes, BoxNotes):
                kept["box_notes"] = BoxNotes(*(getattr(notes, f.name)[keep] for f in fields(BoxNotes)))
        if HISTORY in targets:
            kept[HISTORY] = tuple(self._kept(earlier) for earlier in targets[HISTORY])
        return kept


@dataclass(frozen=True)
class CutMap:
    """Cut cells off all around the target `bev_map`: those that were there only to turn into it.

    Args:
        margin: Rows at either end, and columns.
    """

    margin: tuple[int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, targets=self._cut(sample.targets)) if any(self.margin) else sample

    def _cut(self, targets: dict[str, Any]) -> dict[str, Any]:
        cut = dict(targets)
        bev_map = targets.get("bev_map")
        if isinstance(bev_map, BEVMap):
            rows, columns = self.margin
            height, width = bev_map.grid.hw
            inner = bev_map.masks[:, rows : height - rows, columns : width - columns]
            cut["bev_map"] = BEVMap(inner, widened(bev_map.grid, (-rows, -columns)), bev_map.classes)
        if HISTORY in targets:
            cut[HISTORY] = tuple(self._cut(earlier) for earlier in targets[HISTORY])
        return cut


def widened(grid: BEVGrid, margin: tuple[int, int]) -> BEVGrid:
    """The grid with so many more rows at either end, and columns; the old cells stay where they are."""
    (rows, columns), (cell_x, cell_y) = margin, grid.cell_m
    x_min, y_min, z_min, x_max, y_max, z_max = grid.range_m
    x, y = columns * cell_x, rows * cell_y
    return BEVGrid(
        (x_min - x, y_min - y, z_min, x_max + x, y_max + y, z_max),
        (grid.hw[0] + 2 * rows, grid.hw[1] + 2 * columns),
    )


def margin_cells(
    grid: BEVGrid, turn_rad: float, scale: float = 0.0, *, is_mirrored: bool = False
) -> tuple[int, int]:
    """How many rows and columns around a grid `MoveWorld` of these settings may bring into it."""
    x_min, y_min, _, x_max, y_max, _ = grid.range_m
    corners = np.array([(x, y) for x in (x_min, x_max) for y in (y_min, y_max)])
    if is_mirrored:
        # Which way the car looks in the reference frame is not known here.
        corners = np.concatenate([corners, corners * [-1, 1], corners * [1, -1]])
    angles = np.linspace(-turn_rad, turn_rad, 65)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = corners.T
    places = np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1) / (1 - scale)
    over = np.maximum(places - [x_max, y_max], [x_min, y_min] - places).max(axis=(0, 1))
    columns, rows = np.ceil(np.maximum(over, 0) / grid.cell_m - 1e-9).astype(int).tolist()
    return rows, columns


def _moved_targets(targets: dict[str, Any], new_from_ref: Float64[Tensor, "4 4"]) -> dict[str, Any]:
    moved = dict(targets)
    for name, target in targets.items():
        if isinstance(target, Boxes3D):
            moved[name] = target.transformed(new_from_ref)
        elif isinstance(target, BEVMap):
            moved[name] = _moved_map(target, new_from_ref)
        elif name == HISTORY:
            moved[name] = tuple(_moved_targets(earlier, new_from_ref) for earlier in target)
    return moved


def _moved_map(bev_map: BEVMap, new_from_ref: Float64[Tensor, "4 4"]) -> BEVMap:
    """Each cell takes what lay under its middle; nothing where that is outside."""
    grid, (height, width) = bev_map.grid, bev_map.grid.hw
    back = torch.linalg.inv(new_from_ref)
    old = grid.centers_m(new_from_ref) @ back[:2, :2].T + back[:2, 3]
    columns, rows = (grid.to_parts(old) * old.new_tensor([width, height])).floor().long().unbind(-1)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    cells = bev_map.masks.flatten(1)[:, (rows * width + columns).where(inside, 0)] & inside
    return replace(bev_map, masks=cells.reshape(-1, height, width))


def _reflection(rig: Rig) -> Float64[Tensor, "4 4"]:
    """Left and right of the car exchanged, in the reference frame, through its origin."""
    left = rig.ego_from_ref[1, :3].double().clone()
    left[2] = 0
    left = left / left.norm()
    reflection = torch.eye(4, dtype=torch.float64)
    reflection[:3, :3] -= 2 * left[:, None] @ left[None, :]
    return reflection


def _renamed(rig: Rig) -> Rig:
    """Left and right cameras with each other's names, in the old order of names."""
    names = names_of(rig)
    new = [_other_side(name, names) for name in names]
    order = [new.index(name) for name in names]
    return picked(replace(rig, camera_names=tuple(new)), order)


def _other_side(name: str, names: tuple[str, ...]) -> str:
    for one, other in (("LEFT", "RIGHT"), ("RIGHT", "LEFT"), ("left", "right"), ("right", "left")):
        if one in name and name.replace(one, other) in names:
            return name.replace(one, other)
    return name
