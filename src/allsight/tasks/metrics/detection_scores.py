"""Scores of a task that finds boxes around a car."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from allsight.data.driving.vocabulary import ATTRIBUTES
from allsight.tasks.metrics.confusion import plain
from allsight.tasks.metrics.detection_3d import (
    ERRORS,
    THRESHOLDS_M,
    DetectionResult,
    Ring,
    WorldBoxes,
    evaluate,
    evaluate_rings,
)
from allsight.tasks.metrics.submission import world_boxes
from allsight.types import Answer, Batch, Boxes3DAnswer

_SHORT = {
    "trans_err": "mate",
    "scale_err": "mase",
    "orient_err": "maoe",
    "vel_err": "mave",
    "attr_err": "maae",
}


class Detection3DScores:
    """nuScenes' mAP, errors and NDS over all samples seen.

    Boxes are compared in the world as the devkit does; those without points and those beyond the range of
    their class are left out. Numbers differ from the devkit's by what an upright box in a tilted frame loses,
    and by bicycles in racks, which the devkit takes out; `allsight.tasks.metrics.submission` compares a
    result file with tables exactly.

    Args:
        classes: Names.
        ranges_m: How far from the car each class counts.
        ring_edges_m: Edges of the rings for which scores are given too.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ranges_m: Mapping[str, float],
        ring_edges_m: Sequence[float] = (0.0, 20.0, 40.0),
    ) -> None:
        self.classes = tuple(classes)
        self.ranges_m = tuple(float(ranges_m[name]) for name in classes)
        self.rings = tuple(Ring(low, high) for low, high in pairwise(ring_edges_m))
        self.count = 0
        self.truth: list[WorldBoxes] = []
        self.answers: list[WorldBoxes] = []

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Add the rows of a batch: `boxes` and `box_notes` are its truth, one of each a row."""
        for row, answer in enumerate(answers):
            assert isinstance(answer, Boxes3DAnswer), "boxes are scored on Boxes3DAnswer"
            boxes = batch.targets["boxes"][row]
            notes = batch.targets["box_notes"][row] if "box_notes" in batch.targets else None
            poses = torch.from_numpy(answer.ego_from_ref), torch.from_numpy(answer.world_from_ref)
            true = Boxes3DAnswer.of(answer.id, answer.task, boxes, *poses, self.classes)
            self.add(
                world_boxes(true, self.count),
                world_boxes(answer, self.count),
                None if notes is None else notes.num_points.cpu().numpy(),
                None if notes is None else notes.attributes.cpu().numpy(),
            )

    def add(
        self,
        truth: WorldBoxes,
        answers: WorldBoxes,
        num_points: np.ndarray | None = None,
        attributes: np.ndarray | None = None,
    ) -> None:
        """Add one sample; both carry its number, `count`."""
        if attributes is None:
            attributes = np.full(len(truth), -1, dtype=np.int64)
        truth = WorldBoxes(**{**vars(truth), "attributes": attributes})
        if num_points is not None:
            truth = truth.select(num_points != 0)
        self.truth.append(truth.within(self.ranges_m))
        self.answers.append(answers.within(self.ranges_m))
        self.count += 1

    def merge(self, other: Detection3DScores) -> None:
        for own, others in ((self.truth, other.truth), (self.answers, other.answers)):
            own += [WorldBoxes(**{**vars(part), "samples": part.samples + self.count}) for part in others]
        self.count += other.count

    def result(self) -> DetectionResult:
        """All scores."""
        return evaluate(WorldBoxes.joined(self.truth), WorldBoxes.joined(self.answers), self.classes)

    def compute(self) -> dict[str, float]:
        """`nds`, `map`, `map_occurring` (classes with a true box only), `ap_0.5m` ..., `mate` ... `maae`.

        nan when no sample was scored.
        """
        if not self.count:
            names = ["nds", "map", "map_occurring", *(f"ap_{t:g}m" for t in THRESHOLDS_M), *_SHORT.values()]
            return dict.fromkeys(names, float("nan"))
        result = self.result()
        occurs = result.counts > 0
        at = {
            f"ap_{threshold:g}m": float(result.ap[occurs, n].mean()) if occurs.any() else float("nan")
            for n, threshold in enumerate(THRESHOLDS_M)
        }
        return {
            "nds": result.nds,
            "map": result.mean_ap,
            "map_occurring": result.ap_of_occurring(),
            **at,
            **{_SHORT[name]: value for name, value in result.mean_errors.items()},
        }

    def tables(self) -> dict[str, Any]:
        """`per_class` rows, `rings` (mean AP and AP of each class by distance), and `notes`."""
        if not self.count:
            return {"notes": ["no sample was scored, so all values are nan"]}
        result = self.result()
        truth, answers = WorldBoxes.joined(self.truth), WorldBoxes.joined(self.answers)
        rings = evaluate_rings(truth, answers, self.classes, self.rings)
        return {
            "per_class": [
                {
                    "class": name,
                    "count": int(result.counts[n]),
                    "ap": plain(float(result.ap[n].mean())),
                    **{f"ap_{t:g}m": plain(float(result.ap[n, k])) for k, t in enumerate(THRESHOLDS_M)},
                    **{error: plain(float(result.errors[n, k])) for k, error in enumerate(ERRORS)},
                }
                for n, name in enumerate(self.classes)
            ],
            "rings": [
                {
                    "ring": name,
                    "count": int(ring.counts.sum()),
                    "map_occurring": plain(ring.ap_of_occurring()),
                    **{
                        f"ap_{t:g}m": plain(
                            float(np.mean(ring.ap[ring.counts > 0, k])) if ring.counts.any() else np.nan
                        )
                        for k, t in enumerate(THRESHOLDS_M)
                    },
                }
                for name, ring in rings.items()
            ],
        }


def attribute_places(names: Sequence[str]) -> np.ndarray:
    """A data set's attributes as places in nuScenes' list; -1 for others, also behind the last (for -1)."""
    place_of = {name: n for n, name in enumerate(ATTRIBUTES)}
    return np.array([*(place_of.get(name, -1) for name in names), -1], dtype=np.int64)
