"""The order of samples as pure functions of (seed, task, draw): random access, nothing to save.

Ranks, workers and the past appear nowhere, so any of them may compute any part of the order.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy.random.bit_generator import ISeedSequence

LISTED_UP_TO = 65_536
"""Longest order that is kept as a list; longer ones are computed position by position."""

_KEPT_BYTES = 16 * 2**20
_ROUNDS = 4

Indices = Int64[np.ndarray, " n"]


def generator(seed: int, *place: str | int) -> np.random.Generator:
    """A generator of random numbers for one place of use, such as `("augment", task, draw, row)`.

    Generators of different places are independent, and each is the same in every process and on every
    machine. Making one costs about 5 microseconds: make one per sample, not one per operation.
    """
    return np.random.Generator(keyed_bits(place_key(seed, *place)))


def keyed_bits(key: int) -> np.random.Philox:
    """The bits of a key of 128 bits: those of `Philox(key=...)`, which takes five times as long to make."""
    # numpy's types do not know that it takes any `ISeedSequence`.
    source: Any = _Key(key)
    # The counter that it has anyway, since a number would first be made into this array.
    return np.random.Philox(source, counter=_FROM_ZERO)


_FROM_ZERO = np.zeros(4, dtype=np.uint64)


class _Key(ISeedSequence):
    """A key as the source of a bit generator's state: `Philox(key=...)` without asking for entropy first."""

    def __init__(self, key: int) -> None:
        self._words = np.frombuffer(key.to_bytes(16, "little"), dtype="<u8")

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        assert n_words == 2 and dtype is np.uint64
        return self._words


def place_key(seed: int, *place: str | int) -> int:
    """128 bits for one place of use; equal in every process, which Python's own hash of strings is not."""
    text = "\x1f".join([str(seed), *map(str, place)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


class Shuffles:
    """A fresh permutation of a task's samples per epoch.

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._listed: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        self._listed_bytes = 0

    def samples(self, task: str, size: int, positions: Indices) -> Indices:
        """The sample at each position of a task's endless order.

        Position p lies in epoch p // size, and each epoch holds each of the `size` samples once.
        """
        epochs, offsets = np.divmod(positions, size)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = self.permutation(task, size, epoch, offsets[here])
        return found

    def in_blocks(
        self, task: str, size: int, epoch: int, offsets: Indices, *, block: int, rows: int
    ) -> Indices:
        """Another permutation of one epoch, in which each row of the batches reads blocks of neighbours.

        The blocks are shuffled and laid end to end, each shuffled in itself, and the line is cut into equal
        pieces, one a row. So a batch comes from as many places as it has rows, and each row stays in a block
        until all of it was shown.

        Args:
            block: Neighbours in a block; what is left of `size` is a shorter one, the last of the line.
            rows: Rows of a batch; offset o belongs to the row o % rows.
        """
        steps, row = np.divmod(offsets, rows)
        whole, rest = divmod(size, rows)
        blocks, inside = np.divmod(row * whole + np.minimum(row, rest) + steps, block)
        full = size // block
        moved = blocks < full
        blocks[moved] = self.permutation(f"{task}\x1fblocks", full, epoch, blocks[moved])
        for number in np.unique(blocks).tolist():
            here = blocks == number
            length = min(block, size - number * block)
            inside[here] = self.permutation(f"{task}\x1fblock {number}", length, epoch, inside[here])
        return blocks * block + inside

    def permutation(self, task: str, size: int, epoch: int, offsets: Indices) -> Indices:
        """Where the permutation of one epoch sends `offsets` (0 <= offset < size)."""
        if size <= LISTED_UP_TO:
            return self.whole(task, size, epoch)[offsets].astype(np.int64)
        return _feistel(place_key(self._seed, "order", task, epoch), size, offsets)

    def whole(self, task: str, size: int, epoch: int) -> np.ndarray:
        """The permutation of one epoch as a list (uint16 or uint32)."""
        key = (task, size, epoch)
        if key in self._listed:
            self._listed.move_to_end(key)
            return self._listed[key]
        order = generator(self._seed, "order", task, epoch).permutation(size)
        order = order.astype(np.uint16 if size <= LISTED_UP_TO else np.uint32)
        self._listed[key] = order
        self._listed_bytes += order.nbytes
        while self._listed_bytes > _KEPT_BYTES and len(self._listed) > 1:
            self._listed_bytes -= self._listed.popitem(last=False)[1].nbytes
        return order


def _feistel(key: int, size: int, offsets: Indices) -> Indices:
    """A keyed permutation of range(size), evaluated at `offsets` alone.

    Four Feistel rounds permute the smallest square power of two that holds `size`; results outside are sent
    through again ("cycle walking") until they fall inside.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    # One array, since numpy warns when scalar (not array) arithmetic wraps around, as it is meant to here.
    words = np.array([key & (2**64 - 1), key >> 64], dtype=np.uint64)
    keys = _mixed(np.arange(1, _ROUNDS + 1, dtype=np.uint64) * words[1:] + words[:1])
    values = offsets.astype(np.uint64)
    walking = np.ones(len(values), dtype=bool)
    while walking.any():
        left, right = values[walking] >> np.uint64(half), values[walking] & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        values[walking] = (left << np.uint64(half)) | right
        walking = values >= np.uint64(size)
    return values.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every output bit depends on every input bit (finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Frames:
    """Frames of streams: index of each in the reader, whether its stream begins with it, and in which draw
    the stream of each began."""

    indices: Indices
    starts: Bool[np.ndarray, " n"]
    begun: Indices


class Streams:
    """Endless streams over the sequences of a task, one stream per slot.

    Each epoch the sequences are shuffled and laid end to end, and the row of all frames is cut into equal
    pieces, one a slot. All frames are seen each epoch; fewer than `slots` of them twice.

    Args:
        task: Name, which keys the order.
        lengths: Frames in each sequence, in the reader's order.
        slots: Number of streams.
    """

    def __init__(self, shuffles: Shuffles, task: str, lengths: tuple[int, ...], slots: int) -> None:
        self._shuffles, self._task, self._slots = shuffles, task, slots
        self._lengths = np.array(lengths, dtype=np.int64)
        self._first = np.cumsum(self._lengths) - self._lengths
        self._num_frames = int(self._lengths.sum())
        self.piece = -(-self._num_frames // slots)
        """Frames of one slot in one epoch, which are also the draws of one epoch."""

    def frames(self, slots: Indices, draws: Indices) -> Frames:
        """The frame that each slot shows in its draw."""
        epochs, offsets = np.divmod(draws, self.piece)
        indices = np.empty_like(slots)
        starts = offsets == 0
        begun = np.empty_like(draws)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order = self._shuffles.whole(self._task, len(self._lengths), epoch).astype(np.int64)
            ends = np.cumsum(self._lengths[order])
            places = (slots[here] * self.piece + offsets[here]) % self._num_frames
            nth = np.searchsorted(ends, places, side="right")
            into = places - (ends[nth] - self._lengths[order][nth])
            indices[here] = self._first[order[nth]] + into
            starts[here] |= into == 0
            begun[here] = draws[here] - np.minimum(into, offsets[here])
        return Frames(indices, starts, begun)
