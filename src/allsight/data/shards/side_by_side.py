"""The same work on many shards, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


class ProcessDied(RuntimeError):
    """A process that did a part of the work was killed. One line."""


def each(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """`function` of each item, in order. After the first error nothing further is begun.

    Args:
        function: Of a module, so that other processes find it.
        processes: 1 works in this one.

    Raises:
        ProcessDied: One was killed, such as for want of memory.
    """
    if processes == 1:
        yield from map(function, items)
        return
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        # The imports are then made once, not in each process.
        context.set_forkserver_preload([getattr(function, "func", function).__module__])
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool as error:
        raise ProcessDied(
            "one of the working processes was killed (was memory short?); run the command again, it goes on "
            "where it stopped"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would go on writing beside the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="allsight-parent", daemon=True).start()
