"""Scores of words that were taken out of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allsight.types import Answer, Batch, WordsAnswer


class WordScores:
    """Share of tokens taken out that were named right."""

    def __init__(self) -> None:
        self.hits, self.count = 0, 0

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Count a batch with the target `labels`."""
        for answer, labels in zip(answers, batch.targets["labels"], strict=True):
            assert isinstance(answer, WordsAnswer)
            right = labels[labels != -100].tolist()
            self.hits += sum(a == b for a, b in zip(answer.tokens, right, strict=True))
            self.count += len(right)

    def merge(self, other: WordScores) -> None:
        self.hits, self.count = self.hits + other.hits, self.count + other.count

    def compute(self) -> dict[str, float]:
        """`accuracy`; nan when nothing was scored."""
        return {"accuracy": self.hits / self.count if self.count else float("nan")}

    def tables(self) -> dict[str, Any]:
        return {}
