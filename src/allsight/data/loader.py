"""The Meta Dataloader: steps of a joint run, and the validation batches of one task."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch

from allsight.data.evaluation import EvaluationOrder
from allsight.data.making import BatchMaker, JudgeOrder, TrainOrder
from allsight.data.sampler import BatchSource, Plan, Sampler, SampleReader, StepShape
from allsight.data.workers import InProcess, Workers, Workforce
from allsight.types import Batch, Costs, Step


class MetaDataloader:
    """The steps of a run from `start_step` on, as this rank sees them.

    What step n holds depends on the plan and n alone: not on the number of workers, on where iteration
    started, or (but for the rank's part) on the number of ranks.

    Args:
        plan: The run's plan. Iteration ends after `plan.steps` steps, if that is set.
        start_step: First step wanted.
        num_workers: Processes that make batches ahead; 0 makes them here, when they are asked for.
        prefetch: Steps that are made ahead, per worker.
        device: Where batches go; None leaves them on the CPU.
    Raises:
        ConfigError: The plan holds objects in memory and cannot be rebuilt in workers.
    """

    def __init__(
        self,
        plan: Plan,
        start_step: int = 0,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        device: torch.device | str | None = None,
    ) -> None:
        self._plan = plan
        self._sampler = Sampler(plan)
        self._next = start_step
        self._device = torch.device(device) if device is not None else torch.device("cpu")
        self._depth = max(1, num_workers * prefetch)
        self._ahead: deque[tuple[StepShape, dict[str, list[int]]]] = deque()
        self._closed = False
        self.workforce: Workforce = Workers(plan, num_workers) if num_workers else InProcess(BatchMaker(plan))
        """Who makes the batches; an `EvaluationLoader` may share it."""
        self.waited_s = 0.0
        """Seconds that steps were waited for so far."""

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        """The next step.

        Raises:
            DataError: Too many samples cannot be used.
            LoadingError: Code of a task failed, or a worker died; names task and sample.
        """
        if self._closed:
            raise ValueError("this MetaDataloader is closed; make another one")
        begun = time.perf_counter()
        self._order_ahead()
        if not self._ahead:
            raise StopIteration
        shape, tickets = self._ahead.popleft()
        batches = {task: tuple(map(self._fetched, tickets[task])) for task in shape.tasks}
        # Workers go on while this step is trained.
        self._order_ahead()
        wait_s = time.perf_counter() - begun
        self.waited_s += wait_s
        return Step(shape.number, shape.tasks, shape.weights, shape.sizes, batches, wait_s)

    def _fetched(self, ticket: int) -> Batch:
        begun = time.perf_counter()
        batch = _placed(self.workforce.result(ticket), self._device)
        return replace(batch, costs=batch.costs + Costs(wait_s=time.perf_counter() - begun))

    def close(self) -> None:
        """End the worker processes. Safe to call twice; also happens when the loader is forgotten."""
        self._closed = True
        self._ahead.clear()
        self.workforce.close()

    def __enter__(self) -> MetaDataloader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order_ahead(self) -> None:
        while len(self._ahead) < self._depth and (self._plan.steps is None or self._next < self._plan.steps):
            shape = self._sampler.shape(self._next)
            tickets = {
                task: [
                    self.workforce.submit(TrainOrder(shape.number, task, micro))
                    for micro in range(shape.micro_batches[task])
                ]
                for task in shape.tasks
            }
            self._ahead.append((shape, tickets))
            self._next += 1


class EvaluationLoader:
    """The validation batches of one task that this rank judges; over all ranks each sample occurs once.

    Samples that cannot be used are left out and named in `Batch.corrupt`; a batch may so become empty.
    Batches stay on the CPU.

    Args:
        task: The task.
        reader: Its open validation reader.
        batch_size: Rows of a batch.
        max_samples: Judge only so many, evenly spread.
        workforce: Who makes the batches, such as a MetaDataloader's `workforce`; None makes them here.
        prefetch: Batches that are made ahead by a workforce.
    """

    def __init__(
        self,
        task: BatchSource,
        reader: SampleReader,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        max_samples: int | None = None,
        workforce: Workforce | None = None,
        prefetch: int = 4,
    ) -> None:
        sequences = getattr(reader, "sequences", None)
        self._task = str(getattr(task, "name", ""))
        self._order = EvaluationOrder(
            size=len(reader),
            batch_size=batch_size,
            rank=rank,
            world=world,
            max_samples=max_samples,
            sequences=None if sequences is None else tuple(int(length) for length in sequences),
        )
        self._prefetch = prefetch if workforce is not None else 1
        self._workforce = workforce or InProcess(BatchMaker(None, {self._task: task}, {self._task: reader}))

    @property
    def num_judged(self) -> int:
        """Samples judged by all ranks together."""
        return self._order.num_judged

    def spread(self, count: int) -> frozenset[int]:
        """Up to `count` of the `positions` of this rank, evenly spread over all samples judged."""
        return self._order.spread(count)

    def positions(self, batch: Batch, seen: int) -> list[int]:
        """A number for each row that no other sample judged has, after `seen` rows of this rank."""
        return self._order.positions(batch.slots.tolist(), seen)

    def __iter__(self) -> Iterator[Batch]:
        orders = (JudgeOrder(self._task, rows.slots, rows.indices, rows.starts) for rows in self._order)
        ahead: deque[tuple[int, JudgeOrder]] = deque()
        owed: set[int] = set()
        try:
            while True:
                while len(ahead) < self._prefetch and (order := next(orders, None)) is not None:
                    ahead.append((self._workforce.submit(order), order))
                if not ahead:
                    return
                ticket, order = ahead.popleft()
                batch = self._workforce.result(ticket)
                if self._order.sequences is not None:
                    batch, owed = _with_owed_starts(batch, order, owed)
                yield batch
        finally:
            for ticket, _ in ahead:
                self._workforce.forget(ticket)


def _with_owed_starts(batch: Batch, order: JudgeOrder, owed: set[int]) -> tuple[Batch, set[int]]:
    """Where the first frame of a stream could not be used, the stream begins with the next one that can."""
    slots = batch.slots.tolist()
    starts = batch.starts | torch.tensor([slot in owed for slot in slots], dtype=torch.bool)
    begun = set(order.slots[order.starts].tolist())
    return replace(batch, starts=starts), (owed | begun) - set(slots)


def _placed(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)
