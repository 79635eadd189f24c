"""Losses on pictures that nothing was learnt from, and how often the class was right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allsight.types import Answer, Batch, PretrainingAnswer


class PretrainingScores:
    """Means over rows of the losses of their batches, and accuracy over the rows that have a class.

    `agreement` is minus the sum of the losses: higher is better, and zero has no meaning of its own. A
    falling loss alone is no sign of learning (see the monitors); `top1` needs a target of categories.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._rows = self._labelled = self._hits = 0

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        found = batch.targets.get("label")
        labels = [-1] * len(batch) if found is None else found.tolist()
        for answer, label in zip(answers, labels, strict=True):
            assert isinstance(answer, PretrainingAnswer)
            self._rows += 1
            for name, loss in answer.losses.items():
                self._sums[name] = self._sums.get(name, 0.0) + loss
            if answer.label is not None and label >= 0:
                self._labelled += 1
                self._hits += answer.label == label

    def merge(self, other: Any) -> None:
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._rows += other._rows
        self._labelled += other._labelled
        self._hits += other._hits

    def compute(self) -> dict[str, float]:
        means = {f"loss_{name}": value / self._rows for name, value in sorted(self._sums.items())}
        found = {"agreement": -sum(means.values()), **means}
        if self._labelled:
            found["top1"] = self._hits / self._labelled
        return found

    def tables(self) -> dict[str, Any]:
        return {}
