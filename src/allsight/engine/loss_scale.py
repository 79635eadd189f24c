"""A factor on losses that keeps gradients in the range of float16 (Micikevicius et al., arXiv:1710.03740)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from allsight.engine.parallel.shards import local_part

_FIRST, _LARGEST = 2.0**16, 2.0**32
_GROWS_AFTER = 2000


class LossScale:
    """Halves when a gradient overflowed (that step is skipped), doubles after 2,000 steps without.

    Its values are powers of two, so dividing by it again loses nothing.

    Args:
        enabled: Whether the run computes in float16; otherwise the scale is and stays 1.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = _FIRST if enabled else 1.0
        self._clean = 0

    @torch.no_grad()
    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Give gradients their true size."""
        if self.enabled:
            for gradient in gradients:
                local_part(gradient).div_(self.value)

    def update(self, *, is_finite: bool) -> bool:
        """After a step; whether it was an overflow that a smaller scale answers."""
        if not self.enabled:
            return False
        if is_finite:
            self._clean += 1
            if self._clean >= _GROWS_AFTER and self.value < _LARGEST:
                self.value, self._clean = self.value * 2, 0
            return False
        self._clean = 0
        if self.value <= 1:
            return False
        self.value /= 2
        return True

    def __str__(self) -> str:
        return f"losses are now multiplied by {self.value:g}"

    def to_tensor(self) -> Tensor:
        """Its state, for checkpoints."""
        return torch.tensor([self.value, self._clean], dtype=torch.float64)

    def restore(self, tensor: Tensor | None) -> None:
        """The inverse of `to_tensor`; None (a run that was not in float16) starts anew."""
        if self.enabled and tensor is not None:
            self.value, self._clean = float(tensor[0]), int(tensor[1])
