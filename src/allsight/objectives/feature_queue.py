"""Targets of earlier steps as further negatives."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from allsight.objectives.gathering import gather_rows


class FeatureQueue(nn.Module):
    """The newest `length` target features of all ranks, without gradient, and a key of each.

    A forward pass calls `offer`; the owning model calls `advance` from `after_step`, so that a step that was
    skipped leaves no trace in the queue.

    Args:
        length: Features kept.
        channels: Size of one.
        keyed: Whether each has a key, by which those that say the same as a row's own target are known.
    Source: MoCo, arXiv:1911.05722, section 3.1.
    """

    features: Float[Tensor, "length d"]
    keys: Int64[Tensor, " length"]
    filled: Tensor

    def __init__(self, length: int, channels: int, *, keyed: bool = False) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"FeatureQueue: length: expected 1 or more, got {length}")
        self.register_buffer("features", torch.zeros(length, channels))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._offered: list[Tensor] = []
        self._offered_keys: list[Tensor] = []
        if keyed:
            self.register_buffer("keys", torch.zeros(length, dtype=torch.int64))

    def negatives(self) -> Float[Tensor, "filled d"]:
        """What is in the queue: nothing at first, `length` rows later."""
        return self.features[: int(self.filled)]

    def negative_keys(self) -> Int64[Tensor, " filled"]:
        """The keys of `negatives`."""
        return self.keys[: int(self.filled)]

    @torch.no_grad()
    def offer(self, features: Float[Tensor, "b d"], keys: Int64[Tensor, " b"] | None = None) -> None:
        """Keep this micro-batch's target features for `advance`; all ranks call it equally often."""
        self._offered.append(gather_rows(features.detach()))
        if keys is not None:
            self._offered_keys.append(gather_rows(keys))

    @torch.no_grad()
    def advance(self) -> None:
        """Put what was offered since the last call in front; the oldest fall out."""
        if not self._offered:
            return
        new = torch.cat(self._offered).to(self.features).flip(0)
        kept = torch.cat([new, self.negatives()])[: len(self.features)]
        if self._offered_keys:
            new_keys = torch.cat(self._offered_keys).flip(0)
            self.keys[: len(kept)] = torch.cat([new_keys, self.negative_keys()])[: len(kept)]
        self.features[: len(kept)] = kept
        self.filled.fill_(len(kept))
        self.forget_offers()

    def forget_offers(self) -> None:
        """Drop what a step that was skipped has offered."""
        self._offered, self._offered_keys = [], []
