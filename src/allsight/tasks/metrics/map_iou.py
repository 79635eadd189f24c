"""Intersection over union of map classes that may overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from allsight.tasks.metrics.confusion import plain
from allsight.types import Answer, Batch, BEVMapAnswer

THRESHOLDS = tuple(round(0.35 + 0.05 * n, 2) for n in range(7))
"""Of the BEVFusion protocol, which takes the best of them for each class."""


class MapIoU:
    """Cells counted over the whole set, for each class and threshold.

    Args:
        classes: Names.

    Source: mit-han-lab/bevfusion:mmdet3d/datasets/nuscenes_dataset.py, `evaluate_map`.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        shape = (len(self.classes), len(THRESHOLDS))
        self.both: Int64[np.ndarray, "c t"] = np.zeros(shape, dtype=np.int64)
        self.answered: Int64[np.ndarray, "c t"] = np.zeros(shape, dtype=np.int64)
        self.true: Int64[np.ndarray, " c"] = np.zeros(len(self.classes), dtype=np.int64)
        self.cells = 0

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Add the rows of a batch, whose truth is `bev_map` [b, c, h, w]."""
        masks = batch.targets["bev_map"].cpu().numpy()
        for row, answer in enumerate(answers):
            assert isinstance(answer, BEVMapAnswer), "maps are scored on BEVMapAnswer"
            self.add(masks[row], answer.probabilities)

    def add(self, truth: Bool[np.ndarray, "c h w"], probabilities: Float[np.ndarray, "c h w"]) -> None:
        """Add one map."""
        self.true += truth.sum((1, 2))
        self.cells += truth[0].size if len(truth) else 0
        for n, threshold in enumerate(THRESHOLDS):
            answered = probabilities >= threshold
            self.answered[:, n] += answered.sum((1, 2))
            self.both[:, n] += (answered & truth).sum((1, 2))

    def merge(self, other: MapIoU) -> None:
        self.both += other.both
        self.answered += other.answered
        self.true += other.true
        self.cells += other.cells

    def ious(self) -> np.ndarray:
        """[c, t]; nan for a class that is neither there nor answered."""
        union = self.true[:, None] + self.answered - self.both
        return np.divide(self.both, union, out=np.full(union.shape, np.nan), where=union > 0)

    def compute(self) -> dict[str, float]:
        """`miou` and `iou_CLASS` at the best threshold of each class, `miou_0.5` at one half."""
        ious = self.ious()
        best = {name: _best(row) for name, row in zip(self.classes, ious, strict=True)}
        half = ious[:, THRESHOLDS.index(0.5)]
        return {
            "miou": _mean(np.array(list(best.values()))),
            "miou_0.5": _mean(half),
            **{f"iou_{name}": value for name, value in best.items()},
        }

    def tables(self) -> dict[str, Any]:
        """`per_class` rows: IoU at each threshold, and the share of cells that are the class."""
        rows = [
            {
                "class": name,
                "share": plain(float(self.true[n] / self.cells)) if self.cells else None,
                **{f"iou_{t:g}": plain(float(self.ious()[n, k])) for k, t in enumerate(THRESHOLDS)},
            }
            for n, name in enumerate(self.classes)
        ]
        return {"per_class": rows}


def _best(ious: np.ndarray) -> float:
    known = ious[~np.isnan(ious)]
    return float(known.max()) if known.size else float("nan")


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
