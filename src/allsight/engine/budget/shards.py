"""What sharding adds to memory while a pass runs: blocks that are whole for a while, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from allsight.layers import is_recomputing
from allsight.layers.blocks import blocks_of


class ShardedPass:
    """Follows FSDP2 through one pass with a synchronised backward.

    A block at work is there whole beside the buffer it was gathered into; in the backward the next one is on
    its way meanwhile. Gradients of a block are whole until its last one is there, then copied once to be
    sent, and a part of them stays. What is in no block is whole all the time, its gradients until the end.

    Args:
        model: The whole model.
        width: Bytes in which one number of a weight is gathered.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        blocks = blocks_of(model)
        self._unit: dict[int, int] = {}
        for number, block in enumerate(blocks):
            self._unit |= {id(p): number for p in block.parameters()}
        parameters = list(model.parameters())
        self._sizes = [sum(p.numel() for p in block.parameters()) * width for block in blocks]
        self._outside = sum(p.numel() for p in parameters if id(p) not in self._unit) * width
        self._left = [sum(p.requires_grad for p in block.parameters()) for block in blocks]
        self._gathered = self._outside
        self._whole: dict[int, int] = {}
        self._sent = 0
        self._tops: dict[bool, dict[int, int]] = {True: {}, False: {}}
        self._blocks = blocks

    def hooks(self) -> Iterator[Any]:
        """Follow the forward; handles to remove what was hung onto the blocks."""
        for number, block in enumerate(self._blocks):
            yield block.register_forward_pre_hook(self._before(number))
            yield block.register_forward_hook(self._after)

    def begin_backward(self) -> None:
        """The forward is over."""
        self._go_to(len(self._blocks) - 1)

    def gradient(self, parameter: nn.Parameter, size: int, now: int) -> None:
        """A gradient of so many bytes is there; `now` is what else there is."""
        unit = self._unit.get(id(parameter), -1)
        self._whole[unit] = self._whole.get(unit, 0) + size
        if unit < 0:
            return
        self._left[unit] -= 1
        if self._left[unit] == 0:
            self.see(now + self._whole[unit])
            self._sent += self._whole.pop(unit)
            self._go_to(unit - 1)

    def see(self, now: int) -> None:
        """Take down how much is there; `now` is without weights and gradients."""
        whole = now + sum(self._whole.values())
        for reshards, gathered in ((True, self._gathered), (False, self._outside + sum(self._sizes))):
            tops = self._tops[reshards]
            tops[self._sent] = max(tops.get(self._sent, 0), whole + gathered)

    def peak(self, shards: int, *, reshards: bool) -> int:
        """Most bytes at once beyond the shards of weights, optimiser and average.

        Args:
            shards: Ranks that share one copy.
            reshards: Weights are dropped between forward and backward.
        """
        return max((top + -(-sent // shards) for sent, top in self._tops[reshards].items()), default=0)

    def _before(self, number: int) -> Callable[..., None]:
        def gather(*_: Any) -> None:
            if not is_recomputing():
                self._gathered = self._outside + 2 * self._sizes[number]

        return gather

    def _after(self, *_: Any) -> None:
        if not is_recomputing():
            self._gathered = self._outside

    def _go_to(self, unit: int) -> None:
        coming = [self._sizes[number] for number in (unit, unit - 1) if number >= 0]
        self._gathered = self._outside + sum(coming)
