"""The indexes of a catalogue's shards, read when they are first needed and kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np


class KeptIndexes:
    """Entries of shards by number, those used last within a number of bytes.

    Pickled, it forgets what it kept. May be used by several threads.

    Args:
        load: Gives the entries of a shard.
        limit_bytes: Most bytes kept; one shard's are kept in any case.
    """

    def __init__(self, load: Callable[[int], np.ndarray], limit_bytes: int) -> None:
        self._load, self._limit = load, limit_bytes
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.kept_bytes = 0
        """Bytes of the entries in memory."""

    def __getstate__(self) -> tuple[Any, ...]:
        return self._load, self._limit

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._load, self._limit = state
        self._reset()

    def __getitem__(self, shard: int) -> np.ndarray:
        with self._lock:
            if shard in self._kept:
                self._kept.move_to_end(shard)
                return self._kept[shard]
        # Not under the lock: it may take a server's time, and others can go on with what is here.
        entries = self._load(shard)
        with self._lock:
            if shard not in self._kept:
                self._kept[shard] = entries
                self.kept_bytes += entries.nbytes
            while self.kept_bytes > self._limit and len(self._kept) > 1:
                self.kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return entries
