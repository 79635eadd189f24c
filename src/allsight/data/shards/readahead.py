"""Fetching what will be asked for soon, in threads, within a number of bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future


class ReadAhead:
    """Calls `fetch` for announced items before they are asked for.

    Nothing further is begun while what was fetched but not asked for yet, and what is being fetched, takes
    `limit_bytes`. Pickled or sent to another process, it begins anew without items or threads.

    Args:
        fetch: Called with an item, from threads; gives bytes.
        limit_bytes: Most bytes held.
        threads: Most items fetched at once.
    """

    def __init__(self, fetch: Callable[[int], bytes], limit_bytes: int, threads: int = 16) -> None:
        self._fetch, self._limit, self._most_threads = fetch, limit_bytes, threads
        self._reset()

    def __getstate__(self) -> tuple[Callable[[int], bytes], int, int]:
        return self._fetch, self._limit, self._most_threads

    def __setstate__(self, state: tuple[Callable[[int], bytes], int, int]) -> None:
        self._fetch, self._limit, self._most_threads = state
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, int]] = deque()
        self._held: dict[int, tuple[Future[bytes], int]] = {}
        self._held_bytes = 0
        self._threads = 0

    @property
    def held_bytes(self) -> int:
        """Bytes fetched or being fetched that nobody has asked for yet."""
        return self._held_bytes

    def announce(self, items: Sequence[int], sizes: Sequence[int]) -> None:
        """Say what will be asked for next, in this order; what was announced before is forgotten.

        Args:
            items: What to fetch.
            sizes: About how many bytes each has; what was fetched counts as what it is.
        """
        with self._changed:
            wanted = dict(zip(items, sizes, strict=True))
            for item in [item for item in self._held if item not in wanted]:
                self._drop(item)
            self._waiting = deque((item, size) for item, size in wanted.items() if item not in self._held)
            for _ in range(min(self._most_threads, len(self._waiting)) - self._threads):
                self._threads += 1
                threading.Thread(target=self._work, name="allsight-read-ahead", daemon=True).start()
            self._changed.notify_all()

    def take(self, item: int) -> bytes:
        """What `fetch(item)` gave or gives; its exception, if it raised one."""
        with self._changed:
            held = self._held.get(item)
            if held is None:
                # Nobody has begun it yet: rather than wait for a thread, it is fetched here.
                self._waiting = deque(entry for entry in self._waiting if entry[0] != item)
        if held is None:
            return self._fetch(item)
        try:
            return held[0].result()
        finally:
            with self._changed:
                self._drop(item)
                self._changed.notify_all()

    def _drop(self, item: int) -> None:
        held = self._held.pop(item, None)
        if held is not None:
            # What is still on its way takes memory until it has come.
            future, size = held
            future.add_done_callback(lambda _: self._release(size))

    def _release(self, size: int) -> None:
        with self._changed:
            self._held_bytes -= size
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._waiting and self._held and self._held_bytes + self._waiting[0][1] > self._limit:
                    self._changed.wait()
                if not self._waiting:
                    self._threads -= 1
                    return
                item, size = self._waiting.popleft()
                future: Future[bytes] = Future()
                self._held[item] = (future, size)
                self._held_bytes += size
            try:
                data = self._fetch(item)
            except BaseException as error:
                future.set_exception(error)
                continue
            with self._changed:
                if item in self._held and self._held[item][0] is future:
                    self._held[item] = (future, len(data))
                    self._held_bytes += len(data) - size
            future.set_result(data)
