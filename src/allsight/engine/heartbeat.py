"""Which ranks of a run still live: each says so now and then, in the store where they met."""

from __future__ import annotations

import atexit
import threading
import time

import torch.distributed as dist

_EVERY_S = 1.0
_POLL_S = 0.05


def start_heartbeat(store: dist.Store, rank: int) -> None:
    """Say from now on, in a thread, that this process lives; until it ends or the store does."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        try:
            while not ended.wait(_EVERY_S):
                count += 1
                store.set(f"beat/{rank}", str(count))
        except RuntimeError:
            # The store went with its process.
            return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    store.set(f"beat/{rank}", "0")
    thread.start()

    def end() -> None:
        ended.set()
        thread.join(_EVERY_S)

    # A thread inside the store when Python is taken down would take the process down with it.
    atexit.register(end)


def dead_ranks(store: dist.Store, world: int) -> list[int]:
    """Ranks whose processes have ended. Takes a few beats."""
    try:
        before = _beats(store, world)
        time.sleep(4 * _EVERY_S)
        after = _beats(store, world)
    except RuntimeError:
        return [0]
    return [rank for rank in range(world) if before[rank] == after[rank]]


def hung_ranks(store: dist.Store, rank: int, world: int, wait_s: float = 10.0) -> list[int]:
    """Ranks that live but do not get on, asked by one that waited too long for another.

    Those that wait too notice it at about the same time, and ask here as well.

    Args:
        wait_s: How much later others may notice.
    """
    deadline = time.monotonic() + wait_s
    try:
        store.set(f"asks/{rank}", "")
        missing = set(range(world)) - {rank}
        while missing and time.monotonic() < deadline:
            missing = {other for other in missing if not store.check([f"asks/{other}"])}
            time.sleep(_POLL_S)
    except RuntimeError:
        return [0]
    return sorted(missing)


def _beats(store: dist.Store, world: int) -> list[bytes]:
    keys = [f"beat/{rank}" for rank in range(world)]
    return [store.get(key) if store.check([key]) else b"" for key in keys]
