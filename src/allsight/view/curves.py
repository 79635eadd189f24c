"""Series of numbers over steps: keeping them, smoothing them, drawing few points of many."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Float64


@dataclass
class Series:
    """Values at steps, in order of steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, value: float) -> None:
        """Note one value; what was there for this step or later ones is forgotten."""
        if self.steps and step <= self.steps[-1]:
            self.cut(step)
        self.steps.append(step)
        self.values.append(value)

    def cut(self, step: int) -> None:
        """Forget the values at `step` and after it."""
        keep = bisect_right(self.steps, step - 1)
        del self.steps[keep:], self.values[keep:]

    def x(self) -> Float64[np.ndarray, " n"]:
        return np.array(self.steps, dtype=np.float64)

    def y(self) -> Float64[np.ndarray, " n"]:
        return np.array(self.values, dtype=np.float64)

    def at(self, step: int) -> float | None:
        """The value noted for exactly this step."""
        place = bisect_right(self.steps, step) - 1
        return self.values[place] if place >= 0 and self.steps[place] == step else None


def smooth(values: Float64[np.ndarray, " n"], reach: int) -> Float64[np.ndarray, " n"]:
    """Mean of the finite values up to `reach` places to either side; nan where there are none."""
    reach = max(0, min(reach, 1000, (len(values) - 1) // 2))
    finite = np.isfinite(values)
    window = np.ones(2 * reach + 1)
    # Not a running sum: one huge value would take the digits of all that follow.
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    number = np.convolve(finite.astype(np.float64), window, mode="same")
    return np.where(number > 0.5, total / np.maximum(number, 1), np.nan)


def thin(
    x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], buckets: int
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """At most about `2 * buckets` points that look the same when drawn: least and greatest of each bucket.

    Ends are kept. Within a bucket points that are not finite count only if all are.
    """
    if len(x) <= 2 * buckets:
        return x, y
    edges = np.linspace(0, len(x), buckets + 1).astype(int)
    keep = {0, len(x) - 1}
    for low, high in pairwise(edges):
        part = y[low:high]
        finite = np.flatnonzero(np.isfinite(part))
        if len(finite) == 0:
            keep.add(int(low))
            continue
        keep.add(int(low + finite[part[finite].argmin()]))
        keep.add(int(low + finite[part[finite].argmax()]))
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def bucket_sums(
    x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, "k n"], buckets: int
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, "k m"], Float64[np.ndarray, " m"]]:
    """Middles of `buckets` runs of neighbouring points, sums of each row of `y` there, numbers of points."""
    edges = np.unique(np.linspace(0, len(x), min(buckets, len(x)) + 1).astype(int))
    starts = edges[:-1]
    counts = np.diff(edges).astype(np.float64)
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts, axis=1), counts
