"""Recall of pictures by texts and of texts by pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from allsight.types import Answer, Batch, PairAnswer

_KS = (1, 5, 10)


class RetrievalScores:
    """Recall at 1, 5 and 10 over all samples: among the k most similar is a right one.

    Samples with the same text are right for each other. Equally similar ones rank before the right one, so a
    model that says the same to everything scores nothing.

    Args:
        ways: Names of the two directions: from queries to targets, and back.
    """

    def __init__(self, ways: tuple[str, str] = ("to_text", "to_image")) -> None:
        self.ways = ways
        self.queries: list[Float32[np.ndarray, " d"]] = []
        self.targets: list[Float32[np.ndarray, " d"]] = []
        self.texts: list[str] = []

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        for answer in answers:
            assert isinstance(answer, PairAnswer)
            assert answer.target is not None
            self.queries.append(answer.query)
            self.targets.append(answer.target)
            self.texts.append(answer.text)

    def merge(self, other: RetrievalScores) -> None:
        self.queries += other.queries
        self.targets += other.targets
        self.texts += other.texts

    def compute(self) -> dict[str, float]:
        """`WAY_r1`, `WAY_r5` ... both ways, `mean_recall` over all six; nan when nothing was scored."""
        names = [f"{way}_r{k}" for way in self.ways for k in _KS]
        if not self.texts:
            return dict.fromkeys([*names, "mean_recall"], float("nan"))
        queries, targets = (_normalised(_stacked(rows)) for rows in (self.queries, self.targets))
        _, text = np.unique(self.texts, return_inverse=True)
        right = text[:, None] == text[None, :]
        similarity = queries @ targets.T
        ranks = [_ranks(similarity, right), _ranks(similarity.T, right)]
        values = [float((rank < k).mean()) for rank in ranks for k in _KS]
        return {**dict(zip(names, values, strict=True)), "mean_recall": float(np.mean(values))}

    def tables(self) -> dict[str, Any]:
        return {}


def _stacked(rows: list[np.ndarray]) -> Float32[np.ndarray, "n d"]:
    """Rows as one array; narrow ones (a truth has a width of its own) are filled up with zeros."""
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


def _normalised(rows: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _ranks(similarity: Float32[np.ndarray, "n n"], right: Bool[np.ndarray, "n n"]) -> np.ndarray:
    """How many wrong ones are at least as similar as the most similar right one."""
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    return ((similarity >= best) & ~right).sum(axis=1)
