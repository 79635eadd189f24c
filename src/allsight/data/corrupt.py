"""Samples that cannot be used: which one takes their place, and how many there were."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from allsight.data.order import generator
from allsight.types import CorruptSample

MOST_ATTEMPTS = 50
"""Samples tried for one row before the data set as a whole is called unusable."""

_FIRST_SAMPLES = 1000
"""A share of corrupt samples is judged over at least so many, lest the first bad one stops a run."""


def replacements(
    seed: int,
    task: str,
    draw: int,
    place: int,
    index: int,
    size: int,
    sequences: tuple[int, ...] | None,
    peers: Integer[np.ndarray, " n"] | None = None,
) -> Iterator[int]:
    """Samples to try in place of `index`: the same on every rank, in every worker, after every resume.

    Any other sample will do, or any of `peers` where there are some; in a stream it is the nearest frame of
    the same sequence, earlier ones first.
    """
    if sequences is None:
        for attempt in range(1, MOST_ATTEMPTS + 1):
            rng = generator(seed, "replace", task, draw, place, attempt)
            yield int(rng.integers(size)) if peers is None else int(peers[rng.integers(len(peers))])
        return
    ends = list(accumulate(sequences))
    number = bisect_right(ends, index)
    frames = range(ends[number] - sequences[number], ends[number])
    for distance in range(1, min(MOST_ATTEMPTS, len(frames))):
        yield from (i for i in (index - distance, index + distance) if i in frames)


def judged_over(seen: int, size: int) -> int:
    """Of how many samples those that cannot be used are a share, when `seen` of `size` were used."""
    return min(size, max(seen, _FIRST_SAMPLES))


class Ledger:
    """Counts the corrupt samples of a run, each once, against the samples seen. Goes into checkpoints.

    Every rank keeps the same ledger: it is told of the corrupt samples of all ranks.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        # Dictionaries, since sets of strings have another order in each process.
        self._corrupt: dict[str, dict[str, None]] = {}

    def see(self, sizes: Mapping[str, int]) -> None:
        """Note that a step used so many samples of each task (`Step.sizes`)."""
        for task, size in sizes.items():
            self._seen[task] = self._seen.get(task, 0) + size

    def add(self, bad: CorruptSample) -> bool:
        """Note a corrupt sample; whether it was not known yet."""
        known = self._corrupt.setdefault(bad.task, {})
        is_new = bad.id not in known
        known[bad.id] = None
        return is_new

    def count(self, task: str) -> int:
        """Corrupt samples of a task, each counted once."""
        return len(self._corrupt.get(task, ()))

    def seen(self, task: str) -> int:
        """Samples of a task that steps have used, repetitions counted."""
        return self._seen.get(task, 0)

    def fraction(self, task: str, size: int) -> float:
        """Share of corrupt samples among the different ones seen, for a data set of `size` samples.

        Until a thousand samples (or all) were seen, the share is taken of a thousand (or all).
        """
        return self.count(task) / max(1, self._basis(task, size))

    def excess(self, sizes: Mapping[str, int], limit: float) -> str | None:
        """One line for the user if a task has a larger share of corrupt samples than `limit`, else None.

        Args:
            sizes: Task -> samples in its training set.
            limit: `data.max_corrupt_fraction`.
        """
        for task, size in sizes.items():
            share = self.fraction(task, size)
            if share > limit:
                return (
                    f"task '{task}': {self.count(task)} of {self._basis(task, size)} samples cannot be used "
                    f"({share:.2%}, data.max_corrupt_fraction is {limit:.2%}), such as "
                    f"'{self._example(task)}'; mend or remove them (events.jsonl names each), or raise "
                    f"data.max_corrupt_fraction"
                )
        return None

    def to_tensor(self) -> UInt8[Tensor, " n"]:
        """The ledger as bytes, for a checkpoint."""
        text = json.dumps({"seen": self._seen, "corrupt": {t: list(ids) for t, ids in self._corrupt.items()}})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def restore(self, state: UInt8[Tensor, " n"]) -> None:
        """The inverse of `to_tensor`."""
        tree = json.loads(bytes(state.cpu().numpy()))
        self._seen = dict(tree["seen"])
        self._corrupt = {task: dict.fromkeys(ids) for task, ids in tree["corrupt"].items()}

    def _basis(self, task: str, size: int) -> int:
        return judged_over(self.seen(task), size)

    def _example(self, task: str) -> str:
        return next(iter(self._corrupt[task]))
