"""Processes that make batches ahead of time, and the same in this process for none of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, runtime_checkable

import torch

from allsight.config import ConfigError
from allsight.data import parcel
from allsight.data.making import BatchMaker, LoadingError, Order, TrainOrder
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

    def close(self) -> None:
        self._orders.clear()


class Workers:
    """Processes that rebuild the plan and make batches, each its orders one after the other.

    They are started afresh ("forkserver", else "spawn"), since a copy of a process with threads may hang.
    Only orders and the plan's `rebuild` go to them, and batches come back.

    Args:
        plan: The run's plan.
        count: Number of processes.
    Raises:
        ConfigError: The plan cannot be rebuilt elsewhere.
    """

    def __init__(self, plan: Plan, count: int) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            # Without effect once the server runs; it then only saves each worker its imports.
            context.set_forkserver_preload([__name__])
        rebuild = plan.__reduce__()
        self._tasks = tuple(plan.tasks)
        self._orders: list[deque[tuple[int, Order]]] = [deque() for _ in range(count)]
        self._done: dict[int, Batch | Exception] = {}
        self._unwanted: set[int] = set()
        self._next = 0
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._reading: list[Any] = []
        self._finalizer = weakref.finalize(self, _stop, self._processes, self._connections)
        for number in range(count):
            ours, theirs = context.Pipe()
            reading = context.RawArray("q", 2)
            process = context.Process(
                target=_work,
                args=(rebuild, theirs, reading, dict(os.environ)),
                name=f"allsight-data-{number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
            self._reading.append(reading)

    def submit(self, order: Order) -> int:
        ticket, self._next = self._next, self._next + 1
        worker = ticket % len(self._processes)
        self._orders[worker].append((ticket, order))
        # If the worker died, whoever asks for the batch hears why.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connections[worker].send(order)
        return ticket

    def result(self, ticket: int) -> Batch:
        worker = ticket % len(self._processes)
        while ticket not in self._done:
            self._receive(worker)
        made = self._done.pop(ticket)
        if isinstance(made, Exception):
            raise made
        return made

    def forget(self, ticket: int) -> None:
        if self._done.pop(ticket, None) is None:
            self._unwanted.add(ticket)

    def close(self) -> None:
        self._finalizer()
        self._done.clear()

    def _receive(self, worker: int) -> None:
        connection, process = self._connections[worker], self._processes[worker]
        if not self._finalizer.alive:
            raise LoadingError("the data workers were closed while a batch was awaited")
        # What a dead worker had sent before is still there to be read, and comes first.
        if connection not in wait([connection, process.sentinel]):
            raise LoadingError(self._obituary(worker))
        try:
            value = parcel.receive(connection)
        except (EOFError, ConnectionResetError):
            raise LoadingError(self._obituary(worker)) from None
        ticket, _ = self._orders[worker].popleft()
        if ticket in self._unwanted:
            self._unwanted.remove(ticket)
        else:
            self._done[ticket] = value

    def _obituary(self, worker: int) -> str:
        process = self._processes[worker]
        process.join(5)
        code = process.exitcode
        how = f"exit status {code}" if code is None or code >= 0 else f"killed by {_signal_name(-code)}"
        hint = "; was memory short?" if code == -signal.SIGKILL else ""
        task, index = self._reading[worker]
        if not task:
            return (
                f"data worker {worker} died while it started ({how}){hint}; a script that trains must do so "
                f"under `if __name__ == '__main__':`, and data.workers=0 shows errors in place"
            )
        order = self._orders[worker][0][1] if self._orders[worker] else None
        step = f" for step {order.step}" if isinstance(order, TrainOrder) else ""
        return (
            f"data worker {worker} died ({how}) at task '{self._tasks[task - 1]}', sample index {index}{step}"
            f"{hint}; data.workers=0 shows what happens in place"
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _stop(processes: Sequence[BaseProcess], connections: Sequence[Connection]) -> None:
    """End the processes, whatever they are doing: they hold nothing that needs care."""
    for connection in connections:
        connection.close()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _work(
    rebuild: tuple[Callable[..., Plan], tuple[Any, ...]],
    connection: Connection,
    reading: Any,
    environment: dict[str, str],
) -> None:
    """Life of a worker: make what is ordered until nobody listens any more."""
    # Ctrl-C reaches all processes of a terminal; the training process decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork server has the environment of the moment it was started.
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    made: Batch | Exception
    try:
        maker = _maker(rebuild, reading)
        while True:
            order = connection.recv()
            if isinstance(maker, Exception):
                made = maker
            else:
                try:
                    made = maker.make(order)
                except (ConfigError, DataError, LoadingError, RemoteError) as error:
                    made = _with_traceback(error)
            parcel.send(connection, made)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _maker(rebuild: tuple[Callable[..., Plan], tuple[Any, ...]], reading: Any) -> BatchMaker | Exception:
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

    def note(task: str, index: int) -> None:
        reading[0], reading[1] = numbers[task], index

    return BatchMaker(plan, on_read=note)


def _with_traceback(error: Exception) -> Exception:
    error.add_note("in a data worker:\n" + traceback.format_exc())
    return error
