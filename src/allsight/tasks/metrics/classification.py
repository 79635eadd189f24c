"""Scores of a classification task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from allsight.tasks.metrics.confusion import Confusion, plain
from allsight.tasks.metrics.top_k import TopK
from allsight.types import Answer, Batch, ClassScores, class_name

_MAX_CONFUSION = 1000
"""Classes up to which pairs are counted; 1,000 classes take 8 MB, 10,000 would take 800 MB."""
_MAX_SHOWN = 100
"""Classes up to which the report gets the whole confusion matrix."""
_NUM_MISTAKES = 20


class ClassificationScores:
    """Top-k accuracy, mean accuracy over classes, confusion.

    Args:
        ks: Values of k beside 1; those that are not below `num_classes` say nothing and are left out.
        num_classes: How many classes there are.
        classes: Their names, as far as known.
    """

    def __init__(self, ks: Sequence[int], num_classes: int, classes: tuple[str, ...] = ()) -> None:
        self.classes = classes
        self.top_k = TopK([1, *(k for k in ks if k < num_classes)], num_classes)
        self.confusion = Confusion(num_classes) if num_classes <= _MAX_CONFUSION else None

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Count a batch. Its `label` holds class indices, or soft labels whose largest weight counts."""
        if not answers:
            return
        label = batch.targets["label"].cpu().numpy()
        labels = label.argmax(axis=1) if label.ndim == 2 else label
        scores = np.stack([_scores(answer) for answer in answers])
        self.top_k.add(labels, scores)
        if self.confusion is not None:
            best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
            self.confusion.add(labels, np.where(np.isnan(scores).all(axis=1), -1, best))

    def merge(self, other: ClassificationScores) -> None:
        self.top_k.merge(other.top_k)
        if self.confusion is not None and other.confusion is not None:
            self.confusion.merge(other.confusion)

    def compute(self) -> dict[str, float]:
        """`top1`, further `topK`, `mean_class_accuracy`; nan when nothing was scored."""
        return self.top_k.compute()

    def tables(self) -> dict[str, Any]:
        """`per_class` rows, `confusion` (rows truth, columns answer), `mistakes`, and `notes` for people."""
        hits, counts = self.top_k.hits[0], self.top_k.counts
        tables: dict[str, Any] = {
            "per_class": [
                {
                    "class": class_name(i, self.classes),
                    "count": int(n),
                    "accuracy": plain(hits[i] / n if n else np.nan),
                }
                for i, n in enumerate(counts)
            ]
        }
        if self.confusion is not None:
            tables["mistakes"] = self.confusion.most_confused(_NUM_MISTAKES, self.classes)
            if self.confusion.num_classes <= _MAX_SHOWN:
                tables["confusion"] = self.confusion.rows()
        if not self.top_k.total:
            tables["notes"] = ["no sample was scored, so all values are nan"]
        return tables


def _scores(answer: Answer) -> np.ndarray:
    assert isinstance(answer, ClassScores), (
        f"classification is scored on ClassScores, got {type(answer).__name__}"
    )
    return answer.scores
