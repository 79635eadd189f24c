"""The endless order of one task's samples under its policy: rows of any draw, at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer

from allsight.data.draws import Draws
from allsight.data.order import Shuffles, place_key
from allsight.data.rates import Rates

Indices = Int64[np.ndarray, " n"]
Members = Integer[np.ndarray, " n"]


class Endless:
    """Epoch after epoch of some samples, each in a fresh order.

    Args:
        key: Names this order; the random numbers follow from it.
        size: Number of samples.
        rates: How often each occurs in an epoch; None is once.
        block: If above 0, each row of a draw reads so many neighbours in one go (`Shuffles.in_blocks`).
        rows: Rows of a draw.
        members: Their numbers in the reader; None is 0 ... size - 1.
    """

    def __init__(
        self,
        seed: int,
        shuffles: Shuffles,
        key: str,
        size: int,
        rates: Rates | None = None,
        members: Members | None = None,
        *,
        block: int = 0,
        rows: int = 1,
    ) -> None:
        self._block, self._rows = block, rows
        self._seed, self._shuffles, self._key = seed, shuffles, key
        self._rates, self.members = rates, members
        self.epoch_size = size if rates is None else rates.epoch_size

    def samples(self, positions: Indices) -> Indices:
        """The sample at each position of the endless order."""
        found = self._places(positions)
        if self._rates is not None:
            epochs = positions // self.epoch_size
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                found[here] = self._rates.samples(found[here], epoch, seed=self._seed, task=self._key)
        return found if self.members is None else self.members[found].astype(np.int64)

    def _places(self, positions: Indices) -> Indices:
        """The place of each position in its epoch's line of samples, before rates and members."""
        if not self._block:
            return self._shuffles.samples(self._key, self.epoch_size, positions)
        epochs, offsets = np.divmod(positions, self.epoch_size)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            offsets[here] = self._shuffles.in_blocks(
                self._key, self.epoch_size, epoch, offsets[here], block=self._block, rows=self._rows
            )
        return offsets


class TaskOrder:
    """Which samples the draws of a task bring.

    Without buckets, draws take the task's endless order piece by piece. With buckets, each draw goes to one
    of them, in proportion to their samples and with exact counts (as tasks are drawn from a mixture), and
    takes the next piece of that bucket's own endless order. What the epoch of a bucket leaves over, too
    little for a batch, begins its next batch: nothing is lost or doubled, and buckets stay together to
    within a batch at the end of each block of draws.

    Args:
        task: Name, which keys the order.
        size: Samples in the reader.
        rows: Rows of a draw.
        rates: How often each sample occurs in an epoch; None is once.
        buckets: Bucket of each sample; None is one for all.
        block: If above 0, each row reads so many neighbours in one go.
    """

    def __init__(
        self,
        seed: int,
        shuffles: Shuffles,
        task: str,
        size: int,
        rows: int,
        rates: Rates | None = None,
        buckets: Members | None = None,
        block: int = 0,
    ) -> None:
        self._rows, self._buckets = rows, buckets
        if buckets is None:
            self._parts = {0: Endless(seed, shuffles, task, size, rates, block=block, rows=rows)}
            return
        self._parts = {}
        for bucket in np.unique(buckets).tolist():
            members = np.flatnonzero(buckets == bucket).astype(np.uint32)
            part = None if rates is None else rates.among(members)
            key = f"{task}\x1f{bucket}"
            self._parts[bucket] = Endless(
                seed, shuffles, key, len(members), part, members, block=block, rows=rows
            )
        shares = {str(bucket): float(part.epoch_size) for bucket, part in self._parts.items()}
        self._draws = Draws(place_key(seed, "buckets", task), shares)

    def samples(self, draws: Indices, places: Indices) -> Indices:
        """The sample in each place of each draw."""
        if self._buckets is None:
            return self._parts[0].samples(draws * self._rows + places)
        found = np.empty_like(draws)
        for draw in np.unique(draws).tolist():
            here = draws == draw
            number = self._draws.task_at(draw)
            nth = self._draws.number(number, draw)
            part = self._parts[int(self._draws.tasks[number])]
            found[here] = part.samples(nth * self._rows + places[here])
        return found

    def peers(self, index: int) -> Members | None:
        """Samples that may stand in for a sample: those of its bucket; None is any."""
        return None if self._buckets is None else self._parts[int(self._buckets[index])].members
