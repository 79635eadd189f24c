"""Map classes on the ground around a car, from the pictures of its cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allsight.data.driving.mapped import Mapped
from allsight.data.driving.masks import PROTOCOLS, MapClass, MapMasks
from allsight.data.inspection.moments import Seen
from allsight.data.transforms import Compose
from allsight.data.transforms.world_moves import CutMap, margin_cells, widened
from allsight.models.bevformer.segmentation import MapHead, MapQueryHead, joined_maps
from allsight.objectives import map_mask_losses
from allsight.tasks.base import Split, Transform
from allsight.tasks.metrics.map_iou import MapIoU
from allsight.tasks.rigs import RigTask, bev_spec
from allsight.types import Answer, Batch, BEVGrid, BEVMap, BEVMapAnswer, FeatureSpec


class BEVSegmentation(RigTask):
    """Which map classes each cell of the ground belongs to; classes may overlap.

    Batches are those of `RigTask` with the target `bev_map` [b, c, h, w], true where a cell is of the class.
    The head is a `MapHead`: a query per class, or convolutions. The losses are means over rows and classes,
    summed over the layers that answer. Outputs hold `map_logits` [b, c, h, w], under this key of a
    dictionary or this name of a dataclass. The score is the IoU of each class over the whole set, at the
    best of the thresholds .35 to .65.
    """

    class Config(RigTask.Config):
        head: MapHead.Config = MapQueryHead.Config()
        """The head: `queries` or `conv`."""
        focal: bool = False
        """Focal loss of the cells in place of cross-entropy."""
        cell_weight: float = Field(default=1.0, ge=0)
        """Factor on the loss of the cells."""
        area_weight: float = Field(default=1.0, ge=0)
        """Factor on the loss of the areas (Dice)."""
        protocol: Literal["lift_splat", "bevfusion"] = "lift_splat"
        """Which classes: see `allsight.data.driving.masks.PROTOCOLS`."""
        map_classes: tuple[str, ...] = ()
        """Only these classes of the protocol, in this order; empty takes all."""
        map_range_m: tuple[float, float, float, float] = (-50.0, -50.0, 50.0, 50.0)
        """x_min, y_min, x_max, y_max of the map in the reference frame."""
        map_hw: tuple[int, int] = (200, 200)
        """Rows (along y) and columns (along x) of the map."""
        line_m: float = Field(default=1.0, gt=0)
        """Width of lines."""
        cache: Path | None = None
        """Folder in which finished maps are kept."""

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def map_classes(self) -> tuple[str, ...]:
        """Names of the map classes in order."""
        return self.config.map_classes or tuple(PROTOCOLS[self.config.protocol])

    @property
    def grid(self) -> BEVGrid:
        """Cells of the map; heights mean nothing here."""
        x_min, y_min, x_max, y_max = self.config.map_range_m
        return BEVGrid((x_min, y_min, -5.0, x_max, y_max, 3.0), self.config.map_hw)

    def completed(self, drives: Any, split: Split) -> Mapped:
        known = PROTOCOLS[self.config.protocol]
        chosen: dict[str, MapClass] = {name: known[name] for name in self.map_classes}
        grid = widened(self.grid, self._margin(split))
        return Mapped(drives, MapMasks(grid, chosen, self.config.line_m, self.config.cache))

    def transform(self, split: Split) -> Transform:
        return Compose(super().transform(split), CutMap(self._margin(split)))

    def _margin(self, split: Split) -> tuple[int, int]:
        """Rows and columns around the map that may turn into it."""
        config = self.config
        if split != "train":
            return 0, 0
        return margin_cells(self.grid, config.turn_rad, config.world_scale, is_mirrored=config.mirror > 0)

    def collate_targets(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        targets = super().collate_targets(rows)
        if all("bev_map" in row for row in rows):
            targets["bev_map"] = torch.stack([row["bev_map"].masks for row in rows])
        return targets

    def head(self, features: tuple[FeatureSpec, ...]) -> MapHead:
        return self.config.head.build(bev_spec(features, self.name), len(self.map_classes), self.grid)

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        frames, moments = self.answered(outputs, batch)
        truth = torch.cat([moment["bev_map"] for moment in moments])
        losses = map_mask_losses(joined_maps(frames).layers, truth, focal=self.config.focal)
        return {
            "cells": self.config.cell_weight * losses["cells"],
            "areas": self.config.area_weight * losses["areas"],
        }

    def decode(self, outputs: Any, batch: Batch) -> list[Answer]:
        logits = outputs["map_logits"] if isinstance(outputs, dict) else outputs.map_logits
        chances = logits.detach().float().sigmoid().cpu().numpy()
        return [
            BEVMapAnswer(id, self.name, chances[row], self.grid, self.map_classes)
            for row, id in enumerate(batch.ids)
        ]

    def truth(self, batch: Batch) -> list[Answer]:
        masks = batch.targets["bev_map"].cpu().numpy().astype(np.float32)
        return [
            BEVMapAnswer(id, self.name, masks[row], self.grid, self.map_classes)
            for row, id in enumerate(batch.ids)
        ]

    def panels(self, batch: Batch, row: int, answer: Answer) -> list[Seen]:
        assert isinstance(answer, BEVMapAnswer)
        truth = BEVMap(batch.targets["bev_map"][row].cpu(), self.grid, self.map_classes)
        return [Seen(bev_map=truth, title="truth"), Seen(bev_map=answer.bev_map(), title="answer")]

    def metric(self) -> MapIoU:
        return MapIoU(self.map_classes)

    def main_metric(self) -> str:
        return "miou"
