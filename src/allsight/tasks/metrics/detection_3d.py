"""nuScenes' detection score: average precision over distances, errors of matched boxes, NDS.

Letters in shapes: n boxes, k classes, t thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from allsight.tasks.metrics.matching_3d import match

THRESHOLDS_M = (0.5, 1.0, 2.0, 4.0)
ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
"""Metres, 1 - IoU of aligned boxes, radians, metres a second, share of wrong attributes."""

_ERROR_THRESHOLD_M = 2.0
_RECALLS = np.linspace(0, 1, 101)
_FIRST = 11
"""Place of recall 0.11: at and below 0.1 nothing counts, nor does precision below 0.1."""
_LEAST_PRECISION = 0.1
_UNDEFINED = {
    "traffic_cone": ("orient_err", "vel_err", "attr_err"),
    "barrier": ("vel_err", "attr_err"),
}
_HALF_TURN = frozenset({"barrier"})
"""Classes whose front and rear look alike."""


@dataclass(frozen=True)
class WorldBoxes:
    """Boxes of many samples, in one frame fixed in the world (any that stays within a sample will do).

    Args:
        samples: Number of the sample of each.
        labels: Class index.
        centers_m, sizes_lwh_m, yaw_rad, velocities_mps: Geometry; velocities NaN where unknown.
        attributes: Index of the attribute, -1 for none.
        distances_m: From the car, on the ground.
        scores: Of answers; ignored for truth.
    """

    samples: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    centers_m: Float64[np.ndarray, "n 3"]
    sizes_lwh_m: Float64[np.ndarray, "n 3"]
    yaw_rad: Float64[np.ndarray, " n"]
    velocities_mps: Float64[np.ndarray, "n 2"]
    attributes: Int64[np.ndarray, " n"]
    distances_m: Float64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: Bool[np.ndarray, " n"] | Int64[np.ndarray, " m"]) -> WorldBoxes:
        return WorldBoxes(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def within(self, ranges_m: Sequence[float] | np.ndarray, least_m: float = 0.0) -> WorldBoxes:
        """Those nearer than the range of their class, and not nearer than `least_m`."""
        limit = np.asarray(ranges_m, dtype=np.float64)[self.labels]
        return self.select((self.distances_m < limit) & (self.distances_m >= least_m))

    @classmethod
    def joined(cls, parts: Sequence[WorldBoxes]) -> WorldBoxes:
        """End to end; of nothing, no boxes."""
        if not parts:
            ints, floats = np.zeros(0, dtype=np.int64), np.zeros(0)
            wide = np.zeros((0, 3))
            return cls(ints, ints, wide, wide, floats, np.zeros((0, 2)), ints, floats, floats)
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


@dataclass(frozen=True)
class DetectionResult:
    """Scores of a set.

    Args:
        classes: Names.
        ap: Average precision of each class at each threshold.
        errors: `ERRORS` of each class; NaN where the class has no such error.
        counts: True boxes of each class.
    """

    classes: tuple[str, ...]
    ap: Float64[np.ndarray, "k t"]
    errors: Float64[np.ndarray, "k 5"]
    counts: Int64[np.ndarray, " k"]
    thresholds_m: tuple[float, ...] = THRESHOLDS_M

    @property
    def mean_ap(self) -> float:
        """Over classes and thresholds, those without a true box included (as the devkit has it)."""
        return float(self.ap.mean()) if self.ap.size else float("nan")

    @property
    def mean_errors(self) -> dict[str, float]:
        """Over the classes that have such an error."""
        return {name: _mean(self.errors[:, n]) for n, name in enumerate(ERRORS)}

    @property
    def nds(self) -> float:
        """(5 mAP + sum of max(0, 1 - error)) / 10."""
        scores = [max(0.0, 1 - error) for error in self.mean_errors.values()]
        return (5 * self.mean_ap + sum(scores)) / 10

    def ap_of_occurring(self) -> float:
        """Mean over the classes with a true box."""
        return _mean(self.ap[self.counts > 0].ravel())


def evaluate(
    truth: WorldBoxes,
    answers: WorldBoxes,
    classes: Sequence[str],
    thresholds_m: Sequence[float] = THRESHOLDS_M,
) -> DetectionResult:
    """Score boxes that were filtered by range and points before.

    Source: nutonomy/nuscenes-devkit:python-sdk/nuscenes/eval/detection/{algo,evaluate}.py; equal to it within
    1e-6.
    """
    # Best first; of equal scores the later, as the devkit sorts.
    order = np.lexsort((-np.arange(len(answers)), -answers.scores))
    answers = answers.select(order)
    width = len(classes)
    matched = match(
        answers.samples * width + answers.labels,
        answers.centers_m[:, :2],
        truth.samples * width + truth.labels,
        truth.centers_m[:, :2],
        (*thresholds_m, _ERROR_THRESHOLD_M),
    )
    counts = np.bincount(truth.labels, minlength=width)
    ap = np.zeros((width, len(thresholds_m)))
    errors = np.full((width, len(ERRORS)), np.nan)
    for label, name in enumerate(classes):
        own = np.flatnonzero(answers.labels == label)
        for column in range(len(thresholds_m)):
            ap[label, column] = _average_precision(_curve(matched[column, own] >= 0, int(counts[label])))
        found = matched[-1, own]
        errors[label] = _class_errors(truth, answers.select(own), found, int(counts[label]), name)
    return DetectionResult(tuple(classes), ap, errors, counts, tuple(thresholds_m))


@dataclass(frozen=True)
class Ring:
    """Part of the ground between two distances from the car."""

    least_m: float
    most_m: float

    @property
    def name(self) -> str:
        return f"{self.least_m:g}-{self.most_m:g} m"


def evaluate_rings(
    truth: WorldBoxes, answers: WorldBoxes, classes: Sequence[str], rings: Sequence[Ring]
) -> Mapping[str, DetectionResult]:
    """Scores of the boxes in each ring; an answer belongs to the ring that it lies in itself."""
    results = {}
    for ring in rings:
        limits = np.full(len(classes), ring.most_m)
        results[ring.name] = evaluate(
            truth.within(limits, ring.least_m), answers.within(limits, ring.least_m), classes
        )
    return results


def in_box(points_m: Float64[np.ndarray, "n 3"], boxes: WorldBoxes) -> Bool[np.ndarray, "n m"]:
    """Whether each point lies in each upright box, rims included."""
    way = points_m[:, None] - boxes.centers_m[None]
    cos, sin = np.cos(boxes.yaw_rad), np.sin(boxes.yaw_rad)
    along = way[..., 0] * cos + way[..., 1] * sin
    across = -way[..., 0] * sin + way[..., 1] * cos
    half = boxes.sizes_lwh_m / 2
    return (
        (np.abs(along) <= half[:, 0]) & (np.abs(across) <= half[:, 1]) & (np.abs(way[..., 2]) <= half[:, 2])
    )


def without_racked(boxes: WorldBoxes, racks: WorldBoxes, classes: Sequence[str]) -> WorldBoxes:
    """Without bicycles and motorcycles whose middle lies in a bicycle rack of their sample."""
    two_wheelers = [n for n, name in enumerate(classes) if name in ("bicycle", "motorcycle")]
    keep = np.ones(len(boxes), dtype=bool)
    for sample in np.unique(racks.samples).tolist():
        own = np.flatnonzero((boxes.samples == sample) & np.isin(boxes.labels, two_wheelers))
        here = racks.select(racks.samples == sample)
        keep[own] = ~in_box(boxes.centers_m[own], here).any(axis=1)
    return boxes.select(keep)


def with_samples(boxes: WorldBoxes, number: int) -> WorldBoxes:
    """The same boxes as those of another sample number."""
    return replace(boxes, samples=np.full(len(boxes), number, dtype=np.int64))


@dataclass(frozen=True)
class _Curve:
    precision: Float64[np.ndarray, " 101"]
    recall: Float64[np.ndarray, " answers"]


def _curve(is_hit: Bool[np.ndarray, " n"], count: int) -> _Curve | None:
    """Precision over recall; None where nothing was found or is to be found."""
    if not count or not is_hit.any():
        return None
    hits = np.cumsum(is_hit).astype(np.float64)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / count
    return _Curve(np.interp(_RECALLS, recall, precision, right=0), recall)


def _average_precision(curve: _Curve | None) -> float:
    if curve is None:
        return 0.0
    above = np.maximum(curve.precision[_FIRST:] - _LEAST_PRECISION, 0)
    return float(above.mean() / (1 - _LEAST_PRECISION))


def _class_errors(
    truth: WorldBoxes, answers: WorldBoxes, found: Int64[np.ndarray, " n"], count: int, name: str
) -> list[float]:
    """`ERRORS` of a class: running means in the order of scores, from recall 0.11 to the reached one."""
    curve = _curve(found >= 0, count)
    undefined = _UNDEFINED.get(name, ())
    if curve is None:
        return [np.nan if error in undefined else 1.0 for error in ERRORS]
    scores = np.interp(_RECALLS, curve.recall, answers.scores, right=0)
    reached = np.flatnonzero(scores)
    last = int(reached[-1]) if len(reached) else 0
    own = np.flatnonzero(found >= 0)
    boxes, true = answers.select(own), truth.select(found[own])
    values = _pair_errors(true, boxes, np.pi if name in _HALF_TURN else 2 * np.pi)
    results = []
    for error in ERRORS:
        if error in undefined:
            results.append(np.nan)
        elif last < _FIRST:
            results.append(1.0)
        else:
            # Over falling scores, hence both ways around: `interp` wants rising places.
            running = _running_mean(values[error])
            at_recall = np.interp(scores[::-1], boxes.scores[::-1], running[::-1])[::-1]
            results.append(float(at_recall[_FIRST : last + 1].mean()))
    return results


def _pair_errors(truth: WorldBoxes, answers: WorldBoxes, period: float) -> dict[str, np.ndarray]:
    way = answers.centers_m[:, :2] - truth.centers_m[:, :2]
    common = np.minimum(answers.sizes_lwh_m, truth.sizes_lwh_m).prod(axis=1)
    union = answers.sizes_lwh_m.prod(axis=1) + truth.sizes_lwh_m.prod(axis=1) - common
    turn = (truth.yaw_rad - answers.yaw_rad + period / 2) % period - period / 2
    turn = np.where(turn > np.pi, turn - 2 * np.pi, turn)
    speed = answers.velocities_mps - truth.velocities_mps
    wrong = np.where(truth.attributes < 0, np.nan, answers.attributes != truth.attributes)
    return {
        "trans_err": np.sqrt((way * way).sum(axis=1)),
        "scale_err": 1 - common / union,
        "orient_err": np.abs(turn),
        "vel_err": np.sqrt((speed * speed).sum(axis=1)),
        "attr_err": wrong,
    }


def _running_mean(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Mean of what is known up to each place; 1 everywhere where nothing is known."""
    is_known = ~np.isnan(values)
    if not is_known.any():
        return np.ones(len(values))
    counts = np.cumsum(is_known)
    return np.divide(np.nancumsum(values), counts, out=np.zeros(len(values)), where=counts > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
