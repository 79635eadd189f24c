"""Which validation samples each rank judges, and in which batches: each sample once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64


@dataclass(frozen=True)
class JudgedRows:
    """Rows of one evaluation batch.

    Args:
        slots: Position among the samples judged; for streams, the row of the batch that the stream stays in.
        indices: Sample in the reader.
        starts: True where a stream begins; always, where there are no streams.
    """

    slots: Int64[np.ndarray, " n"]
    indices: Int64[np.ndarray, " n"]
    starts: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class EvaluationOrder:
    """The part of one rank in an evaluation.

    Args:
        size: Samples in the validation set.
        batch_size: Rows of a batch; the last ones may have fewer.
        rank: This process among `world` ones, which share the samples out.
        max_samples: Judge only so many, evenly spread; of streams, so many whole sequences as come nearest.
        sequences: Lengths of the streams, if there are any; each is shown from its first frame to its last.
    """

    size: int
    batch_size: int
    rank: int = 0
    world: int = 1
    max_samples: int | None = None
    sequences: tuple[int, ...] | None = None

    @property
    def num_judged(self) -> int:
        """Samples judged by all ranks together."""
        if self.sequences is not None:
            return sum(self.sequences[number] for number in self._sequences_judged())
        return self.size if self.max_samples is None else min(self.size, self.max_samples)

    def spread(self, count: int) -> frozenset[int]:
        """Up to `count` of the `positions` of this rank, evenly spread over all that is judged."""
        if self.sequences is None:
            return frozenset(_evenly(self.num_judged, min(count, self.num_judged)))
        own = sum(self.sequences[number] for number in self._sequences_judged()[self.rank :: self.world])
        chosen = _evenly(own, min(own, -(-count // self.world)))
        return frozenset(n * self.world + self.rank for n in chosen)

    def positions(self, slots: list[int], seen: int) -> list[int]:
        """A number for each row of a batch that no other sample judged has, on any rank.

        Args:
            slots: Of the rows.
            seen: How many rows this rank judged before.
        """
        if self.sequences is None:
            return slots
        # The slots of streams recur.
        return [(seen + n) * self.world + self.rank for n in range(len(slots))]

    def __iter__(self) -> Iterator[JudgedRows]:
        return self._stream_batches() if self.sequences is not None else self._plain_batches()

    def _plain_batches(self) -> Iterator[JudgedRows]:
        begin, end = (self.num_judged * rank // self.world for rank in (self.rank, self.rank + 1))
        for first in range(begin, end, self.batch_size):
            slots = np.arange(first, min(first + self.batch_size, end), dtype=np.int64)
            indices = slots * self.size // self.num_judged
            yield JudgedRows(slots, indices, np.ones(len(slots), dtype=bool))

    def _stream_batches(self) -> Iterator[JudgedRows]:
        assert self.sequences is not None
        first = np.cumsum(self.sequences) - np.array(self.sequences)
        waiting = iter(self._sequences_judged()[self.rank :: self.world])
        # Slot -> (next frame, end of its sequence, whether it begins).
        running: dict[int, tuple[int, int, bool]] = {}
        while True:
            for slot in range(self.batch_size):
                if slot not in running and (number := next(waiting, None)) is not None:
                    running[slot] = (int(first[number]), int(first[number]) + self.sequences[number], True)
            if not running:
                return
            slots = sorted(running)
            yield JudgedRows(
                np.array(slots, dtype=np.int64),
                np.array([running[slot][0] for slot in slots], dtype=np.int64),
                np.array([running[slot][2] for slot in slots], dtype=bool),
            )
            following = {slot: (frame + 1, end, False) for slot, (frame, end, _) in running.items()}
            running = {slot: state for slot, state in following.items() if state[0] < state[1]}

    def _sequences_judged(self) -> list[int]:
        assert self.sequences is not None
        count = len(self.sequences)
        if self.max_samples is not None and self.size > 0:
            count = min(count, max(1, round(count * self.max_samples / self.size)))
        return _evenly(len(self.sequences), count)


def _evenly(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]
