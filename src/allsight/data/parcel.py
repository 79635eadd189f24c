"""Sending batches from one process to another without copying their tensors through a pipe.

The tensors of a batch lie in one block of memory that both processes have mapped. A block whose batch is gone
at the receiver takes another one: fresh memory would cost several times as much as the copy, since the
system hands it out, and takes it back, page by page.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64
HAS_SHARED_FILES = hasattr(os, "memfd_create")
"""Linux: blocks are anonymous files that are passed on once; else the pipe takes the bytes."""
_MOST_IDLE = 32
"""Letters after which a block that none of them took is given up."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the block, and how."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Letter:
    """What goes through the pipe.

    Args:
        pickled: The value, its tensors numbered.
        places: Where each tensor lies.
        size: Bytes of all of them.
        block: Number of the block, which is a new one of `capacity` bytes if that is not 0.
        dropped: Blocks that will not be used any more.
    """

    pickled: bytes
    places: Sequence[_Place]
    size: int
    block: int = -1
    capacity: int = 0
    dropped: Sequence[int] = ()


class _Packer(pickle.Pickler):
    """Pickles anything; tensors are put aside and their number is written."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj.detach())
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Tensor:
        return self._tensors[pid]


class Outbox:
    """The end of a pipe that sends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._blocks: dict[int, Tensor] = {}
        # Number -> how many letters had been sent when it became free; those free for longest first.
        self._free: dict[int, int] = {}
        self._letters = 0

    def send(self, value: Any) -> None:
        """Send anything that can be pickled; its tensors (CPU, dense) keep their strides."""
        file = io.BytesIO()
        packer = _Packer(file)
        packer.dump(value)
        places, size = [], 0
        for tensor in packer.tensors:
            # What a copy in the same memory format would have; expanded tensors become dense.
            stride = torch.empty_like(tensor, device="meta").stride()
            places.append(_Place(size, tensor.dtype, tuple(tensor.shape), stride))
            size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        self._letters += 1
        if not size or not HAS_SHARED_FILES:
            self._connection.send(_Letter(file.getvalue(), places, size))
            if size:
                block = torch.empty(size, dtype=torch.uint8)
                _fill(block, places, packer.tensors)
                self._connection.send_bytes(block.numpy().tobytes())
            return
        dropped = self._drop(lambda number: self._letters - self._free[number] > _MOST_IDLE)
        number = self._fitting(size)
        if number is not None:
            del self._free[number]
            _fill(self._blocks[number], places, packer.tensors)
            self._connection.send(_Letter(file.getvalue(), places, size, number, 0, dropped))
            return
        # In place of one that was too small, if any is free, so that many sizes do not add up.
        dropped += self._drop(lambda number: number == next(iter(self._free)))
        capacity = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        handle = os.memfd_create("allsight-batch")
        try:
            os.ftruncate(handle, capacity)
            block = torch.frombuffer(mmap.mmap(handle, capacity), dtype=torch.uint8)
            _fill(block, places, packer.tensors)
            self._blocks[self._letters] = block
            letter = _Letter(file.getvalue(), places, size, self._letters, capacity, dropped)
            self._connection.send(letter)
            send_handle(self._connection, handle, None)
        finally:
            os.close(handle)

    def reuse(self, blocks: Sequence[int]) -> None:
        """Take note of blocks that the receiver needs no more (`Inbox.done`)."""
        self._free |= dict.fromkeys(blocks, self._letters)

    def _fitting(self, size: int) -> int | None:
        """The smallest free block that is large enough."""
        fitting = [number for number in self._free if self._blocks[number].numel() >= size]
        return min(fitting, key=lambda number: self._blocks[number].numel(), default=None)

    def _drop(self, is_idle: Callable[[int], bool]) -> list[int]:
        """Give up free blocks; their numbers."""
        dropped = [number for number in self._free if is_idle(number)]
        for number in dropped:
            del self._free[number], self._blocks[number]
        return dropped


class Inbox:
    """The end of a pipe that receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._blocks: dict[int, mmap.mmap] = {}
        self._done: deque[int] = deque()

    # A batch for training may arrive while an evaluation, without gradients, waits for its own.
    @torch.inference_mode(False)
    def receive(self) -> Any:
        """What was sent. Its tensors share a block, which is theirs as long as one of them lives."""
        letter: _Letter = self._connection.recv()
        tensors: list[Tensor] = []
        if letter.places:
            block = self._block(letter)
            tensors = [_view(block, place) for place in letter.places]
        return _Unpacker(io.BytesIO(letter.pickled), tensors).load()

    def done(self) -> list[int]:
        """Blocks whose tensors are gone since this was last asked."""
        return [self._done.popleft() for _ in range(len(self._done))]

    def _block(self, letter: _Letter) -> Tensor:
        if not letter.size:
            return torch.empty(0, dtype=torch.uint8)
        if letter.block < 0:
            return torch.frombuffer(bytearray(self._connection.recv_bytes()), dtype=torch.uint8)
        for number in letter.dropped:
            del self._blocks[number]
        if letter.capacity:
            handle = recv_handle(self._connection)
            try:
                self._blocks[letter.block] = mmap.mmap(handle, letter.capacity)
            finally:
                os.close(handle)
        array = np.frombuffer(self._blocks[letter.block], dtype=np.uint8)
        # Tensors made of an array keep it; the array goes with the last of them.
        weakref.finalize(array, self._done.append, letter.block).atexit = False
        return torch.from_numpy(array)


def _fill(block: Tensor, places: Sequence[_Place], tensors: Sequence[Tensor]) -> None:
    for place, tensor in zip(places, tensors, strict=True):
        _view(block, place).copy_(tensor)


def _view(block: Tensor, place: _Place) -> Tensor:
    num_elements = 1
    for length in place.shape:
        num_elements *= length
    if num_elements == 0:
        return torch.empty_strided(place.shape, place.stride, dtype=place.dtype)
    end = place.offset + num_elements * place.dtype.itemsize
    return block[place.offset : end].view(place.dtype).as_strided(place.shape, place.stride)
