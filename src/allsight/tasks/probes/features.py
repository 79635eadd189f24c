"""Features with labels, as probes take them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """One vector for each picture, and its class.

    Args:
        vectors: Any floating-point type; probes compute in float64.
        labels: Classes from 0 on, on the same device.
    """

    vectors: Float[Tensor, "n c"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Features:
        """Those of some rows, chosen by indices or by a mask."""
        return Features(self.vectors[rows], self.labels[rows])
