"""Work for several processes, and folders that appear whole."""

from __future__ import annotations

import os
import shutil
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from allsight.config import ConfigError

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(do: Callable[[Job], Result], work: Sequence[Job], workers: int) -> Iterator[Result]:
    """Results of jobs in their order, worked on by this process and `workers - 1` others.

    Args:
        do: A function of a module, since other processes look it up by name.
        work: Jobs, picklable.
        workers: Processes; results must not depend on it.

    Raises:
        ConfigError: `workers` is below 1.
    """
    if workers < 1:
        raise ConfigError(f"workers: expected at least 1, got {workers}")
    if workers == 1:
        yield from map(do, work)
        return
    # Not forked: a process with threads (torch has some) must not be. A new one takes half a second to start,
    # so this one works too instead of waiting for the others.
    with ProcessPoolExecutor(workers - 1, mp_context=get_context("spawn")) as pool:
        left = deque(range(len(work)))
        given: dict[int, Future[Result]] = {}
        done: dict[int, Result] = {}
        try:
            for number in range(len(work)):
                while number not in done:
                    while left and sum(not future.done() for future in given.values()) < 2 * (workers - 1):
                        other = left.popleft()
                        given[other] = pool.submit(do, work[other])
                    if number in given and (given[number].done() or not left):
                        done[number] = given.pop(number).result()
                    else:
                        mine = left.popleft()
                        done[mine] = do(work[mine])
                yield done.pop(number)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def all_or_nothing(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name if all goes well and is removed otherwise.

    Raises:
        ConfigError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; remove it or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{out.name}.partial-{socket.gethostname()}-"
    for left in out.parent.glob(f"{mark}*"):
        if not _runs(left.name.removeprefix(mark)):
            shutil.rmtree(left, ignore_errors=True)
    root = out.parent / f"{mark}{os.getpid()}"
    root.mkdir()
    try:
        yield root
        # Refuses a folder that somebody filled in the meantime.
        os.replace(root, out)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _runs(process: str) -> bool:
    if not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
