"""Processes that make batches ahead of time, and the same in this process for none of them."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, runtime_checkable

import torch

from allsight.config import ConfigError
from allsight.data.making import BatchMaker, LoadingError, Order, TrainOrder
from allsight.data.parcel import Inbox, Outbox
from allsight.data.sampler import Plan
from allsight.data.shards.stores import RemoteError
from allsight.types import Batch, DataError


@runtime_checkable
class Workforce(Protocol):
    """Takes orders, and hands out the batches in any order asked for."""

    def submit(self, order: Order) -> int:
        """Order a batch; the ticket to fetch it with."""
        ...

    def result(self, ticket: int) -> Batch:
        """The batch, once and when it is ready."""
        ...

    def forget(self, ticket: int) -> None:
        """Say that nobody will ask for this batch."""
        ...

    def news(self) -> list[str]:
        """What happened since this was last asked that a person should know; one line each."""
        ...

    def close(self) -> None:
        """Stop all work."""
        ...


class InProcess:
    """Makes each batch when it is asked for."""

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker
        self._orders: dict[int, Order] = {}
        self._next = 0

    def submit(self, order: Order) -> int:
        self._orders[self._next] = order
        self._next += 1
        return self._next - 1

    def result(self, ticket: int) -> Batch:
        return self._maker.make(self._orders.pop(ticket))

    def forget(self, ticket: int) -> None:
        del self._orders[ticket]

    def news(self) -> list[str]:
        return []

    def close(self) -> None:
        self._orders.clear()


class _Worker:
    """One process, what it was told to make, and what it said it is reading."""

    def __init__(
        self, context: Any, number: int, rebuild: tuple[Callable[..., Plan], tuple[Any, ...]]
    ) -> None:
        self.connection, theirs = context.Pipe()
        # Task (from 1; 0 is none yet), sample index, whether that is being read or was; seconds of the start.
        self.reading, self.since_s = context.RawArray("q", 3), context.RawValue("d")
        self.process: BaseProcess = context.Process(
            target=_work,
            args=(rebuild, theirs, self.reading, self.since_s, dict(os.environ)),
            name=f"allsight-data-{number}",
            daemon=True,
        )
        self.process.start()
        theirs.close()
        self.inbox = Inbox(self.connection)
        self.orders: deque[tuple[int, Order]] = deque()

    def order(self, ticket: int, order: Order) -> None:
        self.orders.append((ticket, order))
        # If the worker died, whoever asks for the batch finds out.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((order, self.inbox.done()))

    def end(self) -> None:
        """Stop it, whatever it is doing: it holds nothing that needs care."""
        self.connection.close()
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Workers:
    """Processes that rebuild the plan and make batches, each its orders one after the other.

    They are started afresh ("forkserver", else "spawn"), since a copy of a process with threads may hang.
    Only orders and the plan's `rebuild` go to them, and batches come back.

    A worker that dies, or takes longer over one sample than its task allows (`sample_timeout_s`), is replaced
    and its orders are given again. A sample that ends a worker twice is not touched any more: it counts as
    one that cannot be used.

    Args:
        plan: The run's plan.
        count: Number of processes.
    Raises:
        ConfigError: The plan cannot be rebuilt elsewhere.
    """

    def __init__(self, plan: Plan, count: int) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            # Without effect once the server runs; it then only saves each worker its imports.
            self._context.set_forkserver_preload([__name__])
        self._rebuild = plan.__reduce__()
        self._tasks = tuple(plan.tasks)
        self._timeouts_s = {
            name: getattr(source.config, "sample_timeout_s", None) for name, source in plan.sources.items()
        }
        self._done: dict[int, Batch | Exception] = {}
        self._unwanted: set[int] = set()
        self._next = 0
        self._ends: Counter[tuple[type[Order], str, int]] = Counter()
        self._deadly: dict[tuple[type[Order], str], dict[int, str]] = {}
        self._news: list[str] = []
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers)
        for number in range(count):
            self._workers.append(_Worker(self._context, number, self._rebuild))

    @property
    def processes(self) -> list[BaseProcess]:
        """The processes that work at the moment."""
        return [worker.process for worker in self._workers]

    def submit(self, order: Order) -> int:
        ticket, self._next = self._next, self._next + 1
        self._workers[ticket % len(self._workers)].order(ticket, self._without_deadly(order))
        return ticket

    def result(self, ticket: int) -> Batch:
        number = ticket % len(self._workers)
        while ticket not in self._done:
            self._receive(number)
        made = self._done.pop(ticket)
        if isinstance(made, Exception):
            raise made
        return made

    def forget(self, ticket: int) -> None:
        if self._done.pop(ticket, None) is None:
            self._unwanted.add(ticket)

    def news(self) -> list[str]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        self._finalizer()
        self._done.clear()

    def _receive(self, number: int) -> None:
        worker = self._workers[number]
        if not self._finalizer.alive:
            raise LoadingError("the data workers were closed while a batch was awaited")
        # What a dead worker had sent before is still there to be read, and comes first.
        ready = wait([worker.connection, worker.process.sentinel], self._patience_s(worker))
        if not ready:
            if self._patience_s(worker) == 0:
                self._replace(number, is_late=True)
            return
        try:
            if worker.connection not in ready:
                raise EOFError
            value = worker.inbox.receive()
        except (EOFError, ConnectionResetError):
            self._replace(number, is_late=False)
            return
        ticket, _ = worker.orders.popleft()
        if ticket in self._unwanted:
            self._unwanted.remove(ticket)
        else:
            self._done[ticket] = value

    def _patience_s(self, worker: _Worker) -> float | None:
        """Seconds until the sample that is being read is late; None if there is none, or no limit."""
        task, _, is_being_read = worker.reading
        limit = self._timeouts_s.get(self._tasks[task - 1]) if task and is_being_read else None
        if limit is None:
            # A sample may be begun any moment.
            return None if not any(self._timeouts_s.values()) else 1.0
        return max(0.0, worker.since_s.value + limit - time.monotonic())

    def _replace(self, number: int, *, is_late: bool) -> None:
        """Put a new worker in the place of one that died or is late; its orders start over.

        Raises:
            LoadingError: It died before its first sample, between samples, or too many did.
        """
        worker = self._workers[number]
        task, index, is_being_read = worker.reading
        if is_late:
            worker.process.kill()
        how = self._end_of(worker, is_late)
        order = worker.orders[0][1] if worker.orders else None
        where = self._where(worker, order)
        if not task or not is_being_read or order is None or self._ends.total() >= _MOST_ENDS:
            many = f", the {self._ends.total() + 1}th of this run" if self._ends else ""
            raise LoadingError(f"data worker {number} died ({how}){many}{where}")
        name = self._tasks[task - 1]
        key = (type(order), name, index)
        self._ends[key] += 1
        news = f"data worker {number} died ({how}){where}"
        if self._ends[key] > 1:
            self._deadly.setdefault(key[:2], {})[index] = (
                f"{name}[{index}]: ended a data worker twice ({how})"
            )
            news += "; as it did before: the sample is not used any more"
        self._news.append(f"{news}; a new one was started, training goes on")
        self._workers[number] = new = _Worker(self._context, number, self._rebuild)
        for ticket, waiting in worker.orders:
            new.order(ticket, self._without_deadly(waiting))
        worker.end()

    def _without_deadly(self, order: Order) -> Order:
        deadly = self._deadly.get((type(order), order.task))
        return replace(order, deadly=dict(deadly)) if deadly else order

    def _end_of(self, worker: _Worker, is_late: bool) -> str:
        """How a worker ended."""
        worker.process.join(5)
        if is_late:
            limit = self._timeouts_s[self._tasks[worker.reading[0] - 1]]
            return f"stopped, since the sample took longer than {limit:g} s (sample_timeout_s)"
        code = worker.process.exitcode
        how = f"exit status {code}" if code is None or code >= 0 else f"killed by {_signal_name(-code)}"
        return f"{how}; was memory short?" if code == -signal.SIGKILL else how

    def _where(self, worker: _Worker, order: Order | None) -> str:
        """What it was at, and what to do to find out more."""
        task, index, is_being_read = worker.reading
        if not task:
            return (
                " while it started; a script that trains must do so under `if __name__ == '__main__':`, and "
                "data.workers=0 shows errors in place"
            )
        step = f" for step {order.step}" if isinstance(order, TrainOrder) else ""
        at = "at" if is_being_read else "after"
        return (
            f" {at} task '{self._tasks[task - 1]}', sample index {index}{step}; data.workers=0 shows what "
            "happens in place"
        )


_MOST_ENDS = 20
"""Workers that may die in a run before it is given up."""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.end()


def _work(
    rebuild: tuple[Callable[..., Plan], tuple[Any, ...]],
    connection: Connection,
    reading: Any,
    since_s: Any,
    environment: dict[str, str],
) -> None:
    """Life of a worker: make what is ordered until nobody listens any more."""
    # Ctrl-C reaches all processes of a terminal; the training process decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork server has the environment of the moment it was started.
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    keep_freed_memory()
    made: Batch | Exception
    outbox = Outbox(connection)
    try:
        maker = _maker(rebuild, reading, since_s)
        # What is there now stays; to look through it for garbage again and again costs some percent.
        gc.freeze()
        while True:
            order, done = connection.recv()
            outbox.reuse(done)
            if isinstance(maker, Exception):
                made = maker
            else:
                try:
                    made = maker.make(order)
                except (ConfigError, DataError, LoadingError, RemoteError) as error:
                    made = _with_traceback(error)
            outbox.send(made)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def keep_freed_memory() -> None:
    """Let what pictures leave behind be used by the next ones, instead of going back to the system each time.

    Fresh pages cost 5 to 10 % of the time of a picture. The process keeps what its largest batch needed; by
    default glibc gives back what exceeds some megabytes. Other C libraries have no `mallopt`, or ignore it.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_trim_threshold, 256 * 2**20)
        libc.mallopt(m_mmap_threshold, 32 * 2**20)


def _maker(
    rebuild: tuple[Callable[..., Plan], tuple[Any, ...]], reading: Any, since_s: Any
) -> BatchMaker | Exception:
    """The maker of the rebuilt plan, or the reason why there is none, which answers every order."""
    function, arguments = rebuild
    try:
        plan = function(*arguments)
    except (ConfigError, DataError, RemoteError) as error:
        return _with_traceback(error)
    except Exception as error:
        said = f"a data worker could not set up the tasks: {type(error).__name__}: {error}"
        return _with_traceback(LoadingError(said))
    numbers = {name: number for number, name in enumerate(plan.tasks, start=1)}

    def note(task: str, index: int | None) -> None:
        if index is None:
            reading[2] = 0
            return
        since_s.value = time.monotonic()
        reading[:] = numbers[task], index, 1

    return BatchMaker(plan, on_read=note)


def _with_traceback(error: Exception) -> Exception:
    error.add_note("in a data worker:\n" + traceback.format_exc())
    return error
