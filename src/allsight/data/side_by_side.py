"""The same work on many things, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""

_AHEAD = 4
"""So many items a process are asked for ahead, so that none waits and memory stays bounded."""


class ProcessDied(RuntimeError):
    """A process that did a part of the work was killed. One line."""


def each(
    function: Callable[..., Result],
    items: Iterable[Item],
    processes: int,
    *,
    given: tuple[Any, ...] = (),
    called: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """`function(*given, item)` of each item, in order. After the first error nothing further is begun.

    Args:
        function: Of a module, so that other processes find it.
        processes: 1 works in this one.
        given: Sent to each process once.
        called: What an item is called in errors.

    Raises:
        ProcessDied: One was killed, such as for want of memory.
    """
    if processes == 1:
        for item in items:
            yield function(*given, item)
        return
    # Started afresh, since a copy of a process with threads may hang; the server does the imports once.
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([function.__module__])
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(function, given))
    pending: deque[tuple[Item, Future[Result]]] = deque()
    rest = iter(items)
    try:
        while True:
            for item in islice(rest, processes * _AHEAD - len(pending)):
                pending.append((item, pool.submit(_do, item)))
            if not pending:
                return
            yield pending[0][1].result()
            pending.popleft()
    except BrokenProcessPool as error:
        at = called(pending[0][0]) if pending else "its start"
        raise ProcessDied(
            f"a process died at {at} or soon after (out of memory, or a crash in a decoder?); run the "
            "command again, perhaps with --processes 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: tuple[Callable[..., Any], tuple[Any, ...]]
"""What a process does: the function, and what it is given."""


def _begin(function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    global _work
    _work = function, given
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        # A killed parent cannot stop its workers, which would go on writing beside the next run.
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="allsight-parent", daemon=True).start()


def _do(item: Any) -> Any:
    function, given = _work
    return function(*given, item)
