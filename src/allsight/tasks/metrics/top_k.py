"""How often the true class is among the k likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64, Integer


class TopK:
    """Counts, per class, of pictures whose true class is among the k with the highest scores.

    Ties go to the class with the lower index, as `ClassScores.top` lists them. A true class whose score is
    not a number is never a hit.

    Args:
        ks: The values of k.
        num_classes: How many classes there are.
    """

    def __init__(self, ks: Sequence[int], num_classes: int) -> None:
        self.ks = tuple(sorted(set(ks)))
        self.hits: Int64[np.ndarray, "ks k"] = np.zeros((len(self.ks), num_classes), dtype=np.int64)
        self.counts: Int64[np.ndarray, " k"] = np.zeros(num_classes, dtype=np.int64)

    def add(self, labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, "n k"]) -> None:
        """Count pictures with hard labels in 0..k-1."""
        rows = np.arange(len(labels))
        own = scores[rows, labels][:, None]
        # Comparisons with nan are false, so a class without a score never ranks above one that has a score.
        before = np.arange(scores.shape[1])[None, :] < labels[:, None]
        rank = (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
        rank = np.where(np.isnan(own[:, 0]), scores.shape[1], rank)
        np.add.at(self.counts, labels, 1)
        for row, k in enumerate(self.ks):
            np.add.at(self.hits[row], labels, (rank < k).astype(np.int64))

    def merge(self, other: TopK) -> None:
        """Add the counts of `other`, as if its pictures had been counted here.

        Raises:
            ValueError: The other one counts something else.
        """
        if other.ks != self.ks or other.counts.shape != self.counts.shape:
            raise ValueError(
                f"top-k counts for k={self.ks} of {len(self.counts)} classes cannot take in "
                f"k={other.ks} of {len(other.counts)}"
            )
        self.hits += other.hits
        self.counts += other.counts

    @property
    def total(self) -> int:
        """How many pictures were counted."""
        return int(self.counts.sum())

    def compute(self) -> dict[str, float]:
        """`top1`, `top5` ... as shares of all pictures, and the mean over classes of `top1`; nan if none."""
        if not self.total:
            return {**{f"top{k}": float("nan") for k in self.ks}, "mean_class_accuracy": float("nan")}
        occurs = self.counts > 0
        shares = {
            f"top{k}": float(hits.sum() / self.total) for k, hits in zip(self.ks, self.hits, strict=True)
        }
        return {**shares, "mean_class_accuracy": float((self.hits[0][occurs] / self.counts[occurs]).mean())}
