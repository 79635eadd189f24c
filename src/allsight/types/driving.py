"""Nouns of driving data beside camera geometry: what is known of boxes, bird's-eye maps, and answers.

Lengths are metres in the reference frame of `allsight.types.geometry`, angles radians.

Letters in shapes: k boxes, c map classes, h w cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from allsight.types.answers import Answer, class_name
from allsight.types.bev import BEVGrid
from allsight.types.boxes import Boxes3D

NUSCENES_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""The ten classes of the nuScenes detection benchmark, in the order of BEVFormer's published weights."""


@dataclass(frozen=True)
class BoxNotes:
    """What annotators noted of boxes beside their geometry, in the order of their `Boxes3D`.

    Args:
        num_points: LiDAR and radar points inside; -1 where nobody counted.
        attributes: Index into the data set's attributes; -1 for none.
        instances: Number of the object within its scene, the same in all frames; -1 where unknown.
    """

    num_points: Int64[Tensor, "*b k"]
    attributes: Int64[Tensor, "*b k"]
    instances: Int64[Tensor, "*b k"]


@dataclass(frozen=True)
class BEVMap:
    """Which classes each cell belongs to; classes may overlap.

    Args:
        masks: One a class.
        grid: Where the cells lie; row i along y, column j along x.
        classes: Names in the order of `masks`.
    """

    masks: Bool[Tensor, "c h w"]
    grid: BEVGrid
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Boxes3DAnswer(Answer):
    """Upright boxes around one car, in the reference frame of its moment.

    Args:
        centers_ref_m, sizes_m, yaw_rad, velocities_ref_mps: As in `Boxes3D`.
        labels: Class index of each.
        scores: Confidence in 0..1; ones for truth.
        ego_from_ref, world_from_ref: Reference frame to the vehicle's and to the world's.
        classes: Class names, where known.
    """

    kind: ClassVar[str] = "boxes_3d"

    centers_ref_m: Float[np.ndarray, "k 3"]
    sizes_m: Float[np.ndarray, "k 3"]
    yaw_rad: Float[np.ndarray, " k"]
    velocities_ref_mps: Float[np.ndarray, "k 2"]
    labels: Int64[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]
    ego_from_ref: Float64[np.ndarray, "4 4"]
    world_from_ref: Float64[np.ndarray, "4 4"]
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        id: str,
        task: str,
        boxes: Boxes3D,
        ego_from_ref: Float[Tensor, "4 4"],
        world_from_ref: Float[Tensor, "4 4"],
        classes: tuple[str, ...] = (),
    ) -> Boxes3DAnswer:
        """From the boxes of one row; truth, which has no scores, gets ones."""
        scores = boxes.yaw_rad.new_ones(len(boxes.labels)) if boxes.scores is None else boxes.scores
        return cls(
            id,
            task,
            _numpy(boxes.centers_ref_m),
            _numpy(boxes.sizes_m),
            _numpy(boxes.yaw_rad),
            _numpy(boxes.velocities_ref_mps),
            boxes.labels.detach().cpu().numpy(),
            _numpy(scores),
            _numpy(ego_from_ref.double()),
            _numpy(world_from_ref.double()),
            classes,
        )

    def boxes(self, min_score: float = 0.0) -> Boxes3D:
        """The boxes with at least this score, as tensors."""
        keep = self.scores >= min_score
        return Boxes3D(
            torch.from_numpy(self.centers_ref_m[keep]),
            torch.from_numpy(self.sizes_m[keep]),
            torch.from_numpy(self.yaw_rad[keep]),
            torch.from_numpy(self.velocities_ref_mps[keep]),
            torch.from_numpy(self.labels[keep]),
            torch.from_numpy(self.scores[keep]),
        )

    def to_json(self) -> dict[str, Any]:
        """Numbers to the millimetre; velocities that are unknown are null."""
        boxes = []
        for n in range(len(self.scores)):
            speed = self.velocities_ref_mps[n]
            boxes.append(
                {
                    "name": class_name(int(self.labels[n]), self.classes),
                    "score": round(float(self.scores[n]), 4),
                    "center": np.round(self.centers_ref_m[n].astype(float), 3).tolist(),
                    "size": np.round(self.sizes_m[n].astype(float), 3).tolist(),
                    "yaw": round(float(self.yaw_rad[n]), 4),
                    "velocity": [round(float(v), 3) if np.isfinite(v) else None for v in speed],
                }
            )
        return {**super().to_json(), "boxes": boxes}


@dataclass(frozen=True)
class BEVMapAnswer(Answer):
    """Probability of each class in each cell; truth is 0 or 1."""

    kind: ClassVar[str] = "bev_map"

    probabilities: Float32[np.ndarray, "c h w"]
    grid: BEVGrid
    classes: tuple[str, ...] = ()

    def bev_map(self, threshold: float = 0.5) -> BEVMap:
        """The cells that are rather of a class than not."""
        return BEVMap(torch.from_numpy(self.probabilities >= threshold), self.grid, self.classes)

    def to_json(self) -> dict[str, Any]:
        shares = {
            class_name(n, self.classes): round(float((mask > 0.5).mean()), 6)
            for n, mask in enumerate(self.probabilities)
        }
        return {**super().to_json(), "cells_hw": list(self.grid.hw), "shares": shares}


def _numpy(tensor: Tensor) -> np.ndarray:
    """numpy knows no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.element_size() >= 4 else tensor.float()).numpy()
