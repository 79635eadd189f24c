"""Which parts of a model are its blocks: what is sharded, recomputed or compiled piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasBlocks(Protocol):
    """A module that is a chain of blocks, each called as `block(...)` and holding most of the weights."""

    def blocks_in_order(self) -> Sequence[nn.Module]:
        """The blocks, in the order they run."""
        ...


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, those of its parts one after the other; none is inside another."""
    return list(_blocks(model))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, HasBlocks):
        yield from module.blocks_in_order()
        return
    for child in module.children():
        yield from _blocks(child)
