"""What sharding adds to memory while a pass runs: blocks that are whole for a while, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from allsight.layers import is_recomputing
from allsight.layers.blocks import blocks_of

_ROOT = -1
"""The unit of all that is in no block."""


def share_of(shape: torch.Size, shards: int) -> int:
    """Numbers of the largest part of a tensor of this shape whose rows are dealt out over ranks.

    FSDP2 cuts along the first axis and rounds up: of 96 rows and 64 ranks, 48 hold two each, and messages
    have room for two from every rank.
    """
    return -(-shape[0] // shards) * shape[1:].numel() if len(shape) else 1


class _Moment(NamedTuple):
    """Units of which something is there at once, apart from parts that a rank always holds.

    Args:
        whole: Their weights, gathered.
        buffers: The message in which their weights came or are coming.
        sending: Their gradients, in the message that takes them to the other ranks.
        sent: This rank's part of their gradients.
    """

    whole: tuple[int, ...] = ()
    buffers: tuple[int, ...] = ()
    sending: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()


class ShardedPass:
    """Follows FSDP2 through one pass with a synchronised backward.

    Weights of a block come in a buffer and are copied out of it. In the forward the buffer stays until the
    next block has come; in the backward it goes at once, and that of the next block is filled meanwhile.
    When a block's last gradient is there its weights are dropped, its gradients are copied into a buffer and
    sent, and this buffer stays until the next block is done. What is in no block is whole all the time, its
    gradients until the end.

    Args:
        model: The whole model.
        width: Bytes in which one number of a weight is gathered,
        reduced_width: and one of a gradient is sent.
        copies: The library that sends copies each message, as gloo does on CPUs.
        apart: Ids of parameters that are no unit's: each rank has its own.

    Source: pytorch/pytorch:torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py (order of what is kept
    and dropped); torch/csrc/distributed/c10d/ProcessGroupGloo.cpp (copies).
    """

    def __init__(
        self,
        model: nn.Module,
        width: int,
        *,
        reduced_width: int | None = None,
        copies: bool = False,
        apart: Collection[int] = (),
    ) -> None:
        self._blocks = blocks_of(model)
        self._widths, self._copies, self._apart = (width, reduced_width or width), copies, apart
        self._unit = {id(p): n for n, block in enumerate(self._blocks) for p in block.parameters()}
        self._members: dict[int, list[nn.Parameter]] = {n: [] for n in (_ROOT, *range(len(self._blocks)))}
        for parameter in model.parameters():
            if id(parameter) not in apart:
                self._members[self._unit.get(id(parameter), _ROOT)].append(parameter)
        self._left = {n: sum(p.requires_grad for p in ps) for n, ps in self._members.items()}
        self._order: list[int] = []
        self._gradients: dict[int, int] = {}
        self._gradients_apart = 0
        self._now = 0
        start = _Moment(whole=(_ROOT,), buffers=(_ROOT,))
        self._moment = {True: start, False: start}
        self._tops: dict[bool, dict[_Moment, int]] = {True: {}, False: {}}

    def hooks(self) -> Iterator[Any]:
        """Follow the forward; handles to remove what was hung onto the blocks."""
        for number, block in enumerate(self._blocks):
            yield block.register_forward_pre_hook(self._before(number))
            yield block.register_forward_hook(self._after)

    def begin_backward(self) -> None:
        """The forward is over."""
        self._come(self._order[-1] if self._order else None)

    def gradient(self, parameter: nn.Parameter, size: int, now: int) -> None:
        """A gradient of so many bytes is there; `now` is what else there is."""
        self._now = now
        if id(parameter) in self._apart:
            self._gradients_apart += size
            return
        unit = self._unit.get(id(parameter), _ROOT)
        self._gradients[unit] = self._gradients.get(unit, 0) + size
        self._left[unit] -= 1
        if unit != _ROOT and self._left[unit] == 0:
            self._send(unit)
            earlier = self._order[: self._order.index(unit)] if unit in self._order else []
            self._come(earlier[-1] if earlier else None)

    def end_backward(self) -> None:
        """The last gradients are there: those of what is in no block are sent."""
        if self._gradients.get(_ROOT):
            self._send(_ROOT)

    def see(self, now: int) -> None:
        """Take down how much is there; `now` is without weights and gradients."""
        self._now = now
        size = now + sum(self._gradients.values()) + self._gradients_apart
        for reshards, moment in self._moment.items():
            tops = self._tops[reshards]
            tops[moment] = max(tops.get(moment, 0), size)

    def peak(self, shards: int, *, reshards: bool) -> int:
        """Most bytes at once beyond the shards of weights, optimiser and average.

        Args:
            shards: Ranks that share one copy.
            reshards: Weights are dropped between forward and backward.
        """
        width, reduced_width = self._widths
        weights, gradients = {}, {}
        for unit, members in self._members.items():
            weights[unit] = sum(share_of(p.shape, shards) for p in members)
            gradients[unit] = sum(share_of(p.shape, shards) for p in members if p.requires_grad)

        def of(units: Iterable[int], sizes: dict[int, int]) -> int:
            return sum(sizes[unit] for unit in units)

        return max(
            (
                top
                + shards * width * of((*moment.whole, *moment.buffers), weights)
                + shards * reduced_width * of(moment.sending, gradients)
                + of(moment.sent, gradients) * self._full_width
                for moment, top in self._tops[reshards].items()
            ),
            default=0,
        )

    @property
    def _full_width(self) -> int:
        """Bytes of a gradient where it stays."""
        return max((p.element_size() for members in self._members.values() for p in members), default=4)

    def _before(self, number: int) -> Callable[..., None]:
        def gather(*_: Any) -> None:
            if is_recomputing():
                return
            if number in self._order:
                self._order.remove(number)
            self._order.append(number)
            self._change(buffers=(*self._moment[True].buffers, *self._message(number)))
            self._change(buffers=(number,), came=number)

        return gather

    def _after(self, *_: Any) -> None:
        if not is_recomputing():
            self._moment[True] = self._moment[True]._replace(whole=(_ROOT,))

    def _come(self, unit: int | None) -> None:
        """The backward reaches a unit; None: the first one is done."""
        if unit is None:
            self._moment = {r: m._replace(buffers=()) for r, m in self._moment.items()}
            return
        place = self._order.index(unit)
        following = self._order[place - 1 : place] if place else []
        kept = self._moment[False]._replace(buffers=())
        for whole, buffers in (
            ((_ROOT,), self._message(unit)),
            ((_ROOT, unit), (unit,)),
            ((_ROOT, unit), self._message(following[0]) if following else ()),
            ((_ROOT, unit), tuple(following)),
        ):
            self._moment = {True: kept._replace(whole=whole, buffers=buffers), False: kept}
            self.see(self._now)

    def _send(self, unit: int) -> None:
        """Gradients of a unit are copied into a buffer and go, its weights too."""
        for reshards, moment in self._moment.items():
            whole = tuple(other for other in moment.whole if other != unit)
            self._moment[reshards] = moment._replace(whole=whole, sending=(unit,))
        self.see(self._now)
        self._gradients.pop(unit, None)
        for copies in (self._copies, False):
            for reshards, moment in self._moment.items():
                sent = moment.sent if unit in moment.sent else (*moment.sent, unit)
                self._moment[reshards] = moment._replace(sending=(unit,) * (1 + copies), sent=sent)
            self.see(self._now)

    def _message(self, unit: int) -> tuple[int, ...]:
        return (unit,) * (1 + self._copies)

    def _change(self, *, buffers: tuple[int, ...], came: int | None = None) -> None:
        for reshards, moment in self._moment.items():
            whole = moment.whole if came is None else (*moment.whole, came)
            self._moment[reshards] = moment._replace(whole=whole, buffers=buffers)
        self.see(self._now)
