"""Sending a batch from one process to another without copying its tensors through a pipe."""

from __future__ import annotations

import io
import mmap
import os
import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64
HAS_SHARED_FILES = hasattr(os, "memfd_create")
"""Linux: the tensors of a batch lie in one anonymous file that is passed on; else the pipe takes them."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the block, and how."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


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


def send(connection: Connection, value: Any) -> None:
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
    connection.send_bytes(pickle.dumps((file.getvalue(), places, size)))
    if not size:
        return
    if not HAS_SHARED_FILES:
        block = torch.empty(size, dtype=torch.uint8)
        _fill(block, places, packer.tensors)
        connection.send_bytes(block.numpy().tobytes())
        return
    handle = os.memfd_create("allsight-batch")
    try:
        os.ftruncate(handle, size)
        _fill(_mapped(handle, size), places, packer.tensors)
        send_handle(connection, handle, None)
    finally:
        os.close(handle)


# A batch for training may arrive while an evaluation, without gradients, waits for its own.
@torch.inference_mode(False)
def receive(connection: Connection) -> Any:
    """What `send` sent. Its tensors share one block of memory, which lives as long as one of them."""
    pickled, places, size = pickle.loads(connection.recv_bytes())
    tensors: list[Tensor] = []
    if places:
        block = torch.empty(0, dtype=torch.uint8)
        if size and HAS_SHARED_FILES:
            handle = recv_handle(connection)
            try:
                block = _mapped(handle, size)
            finally:
                os.close(handle)
        elif size:
            block = torch.frombuffer(bytearray(connection.recv_bytes()), dtype=torch.uint8)
        tensors = [_view(block, place) for place in places]
    return _Unpacker(io.BytesIO(pickled), tensors).load()


def _mapped(handle: int, size: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(handle, size), dtype=torch.uint8)


def _fill(block: Tensor, places: list[_Place], tensors: list[Tensor]) -> None:
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
