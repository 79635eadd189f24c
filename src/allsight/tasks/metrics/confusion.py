"""How often each class was taken for each other one, and what follows from it: accuracy and IoU."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Integer

from allsight.types import class_name


class Confusion:
    """Counts of (truth, answer) pairs; items are pictures or pixels.

    `counts[t, a]` is how many items of class `t` were answered `a`. The one more column, the last, holds
    answers that are no class at all (a label map's 255), which count as wrong.

    Args:
        num_classes: How many classes there are.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: Int64[np.ndarray, "k k+1"] = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def add(self, truth: Integer[np.ndarray, "*n"], answer: Integer[np.ndarray, "*n"]) -> None:
        """Count pairs. Items whose truth is no class are ignored."""
        k = self.num_classes
        known = (truth >= 0) & (truth < k)
        t, a = truth[known].astype(np.int64), answer[known].astype(np.int64)
        a = np.where((a >= 0) & (a < k), a, k)
        self.counts += np.bincount(t * (k + 1) + a, minlength=k * (k + 1)).reshape(k, k + 1)

    def merge(self, other: Confusion) -> None:
        """Add the counts of `other`, as if its items had been counted here.

        Raises:
            ValueError: The other one counts another number of classes.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"confusion of {self.num_classes} classes cannot merge {other.num_classes}")
        self.counts += other.counts

    @property
    def total(self) -> int:
        """How many items were counted."""
        return int(self.counts.sum())

    def accuracy(self) -> float:
        """Share of items answered rightly; nan when none was counted."""
        return _ratio(self._right().sum(), self.total)

    def class_accuracies(self) -> Float64[np.ndarray, " k"]:
        """Per class, share of its items answered rightly (recall); nan for a class that does not occur."""
        return _ratios(self._right(), self.counts.sum(axis=1))

    def mean_class_accuracy(self) -> float:
        """Mean of `class_accuracies` over the classes that occur; nan when none does."""
        return _mean(self.class_accuracies())

    def ious(self) -> Float64[np.ndarray, " k"]:
        """Per class, intersection over union; nan for a class neither there nor answered."""
        right = self._right()
        answered = self.counts[:, : self.num_classes].sum(axis=0)
        return _ratios(right, self.counts.sum(axis=1) + answered - right)

    def mean_iou(self) -> float:
        """Mean of `ious` over the classes that are there or were answered; nan when there is none.

        Source: open-mmlab/mmsegmentation:mmseg/evaluation/metrics/iou_metric.py (nan-mean over classes).
        """
        return _mean(self.ious())

    def most_confused(self, count: int, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """The commonest mistakes: truth, answer, how often, and as a share of that truth's items."""
        wrong = self.counts[:, : self.num_classes].copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [(int(i) // self.num_classes, int(i) % self.num_classes) for i in order if wrong.flat[i] > 0]
        totals = self.counts.sum(axis=1)
        return [
            {
                "truth": class_name(t, classes),
                "answer": class_name(a, classes),
                "count": int(wrong[t, a]),
                "share": float(wrong[t, a] / totals[t]),
            }
            for t, a in pairs
        ]

    def rows(self) -> list[list[int]]:
        """The counts between classes as plain lists: rows truth, columns answer."""
        return self.counts[:, : self.num_classes].tolist()

    def _right(self) -> Int64[np.ndarray, " k"]:
        return np.diagonal(self.counts).copy()


def plain(value: float) -> float | None:
    """A number for JSON, which knows no nan."""
    return None if np.isnan(value) else float(value)


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _ratios(part: Int64[np.ndarray, " k"], whole: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: Float64[np.ndarray, " k"]) -> float:
    """Mean over what is not nan."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
