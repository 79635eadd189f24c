"""The Meta Sampler: which samples each rank puts into which micro-batch of which step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, Integer

from allsight.config import ConfigError
from allsight.data.draws import Draws, Share
from allsight.data.order import Shuffles, Streams
from allsight.data.policies import buckets_of, rates_of
from allsight.data.rates import Rates
from allsight.data.task_order import TaskOrder
from allsight.types import Batch, Sample

Layout = Literal["one_task", "mixed_batch", "mixed_lanes"]


@runtime_checkable
class SampleReader(Protocol):
    """Random access to samples; one of streams also has `sequences`, the lengths of its streams."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class BatchSource(Protocol):
    """What the loader needs of a task."""

    @property
    def config(self) -> Any: ...

    def reader(self, split: Any) -> SampleReader: ...

    def transform(self, split: Any) -> Callable[[Sample, np.random.Generator], Sample]: ...

    def mix(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sequence[Sample]: ...

    def collate(self, samples: Sequence[Sample]) -> Batch: ...


@dataclass(frozen=True)
class TaskPlan:
    """The numbers of one task that decide its order.

    Args:
        size: Samples in its training set.
        batch_size: Rows of its global batch, over all ranks and micro-batches.
        share: Share of the draws: a number, or knots ((step, share), ...).
        group_size: Neighbouring rows that see each other.
        sequences: Lengths of its streams, if it has any; they lie end to end in the reader.
        mixes: Whether `mix` must be called on its groups.
        rates: How often each sample occurs in an epoch; None is once.
        buckets: Bucket of each sample, where a batch may hold only samples of one.
        block: Neighbours that a row reads in one go; 0 shuffles single samples.
    """

    size: int
    batch_size: int
    share: Share = 1.0
    group_size: int = 1
    sequences: tuple[int, ...] | None = None
    mixes: bool = False
    rates: Rates | None = field(default=None, compare=False, repr=False)
    buckets: Integer[np.ndarray, " size"] | None = field(default=None, compare=False, repr=False)
    block: int = 0

    @classmethod
    def of_task(cls, name: str, config: Any, reader: SampleReader, *, mixes: bool) -> TaskPlan:
        """The numbers of a task, from its settings and its training reader.

        Raises:
            ConfigError: Its policy asks for what the reader cannot tell.
        """
        sequences, path = getattr(reader, "sequences", None), f"config.tasks.{name}.policy"
        return cls(
            size=len(reader),
            batch_size=config.batch_size,
            share=config.share,
            group_size=config.group_size,
            sequences=None if sequences is None else tuple(int(length) for length in sequences),
            mixes=mixes,
            rates=rates_of(config.policy, reader, path=path),
            buckets=buckets_of(config.policy, reader, path=path),
            block=config.policy.block,
        )

    @property
    def epoch_size(self) -> int:
        """Samples in an epoch, repetitions counted."""
        return self.size if self.rates is None else self.rates.epoch_size


@dataclass(frozen=True)
class Plan:
    """All that decides the order of a run's data; refuses settings that contradict each other.

    Args:
        seed: The run's.
        tasks: Task -> its numbers, in the mixture's order.
        layout: How the lanes' draws fill a step.
        lanes: Independent draws per step in the mixed layouts; `one_task` has one.
        proportional: If set, shares are multiplied by (size / batch_size) ** proportional.
        rank: This process among `world` ones.
        accumulate: Micro-batches per rank, step and task.
        steps: Length of the run; None is endless.
        sources: Task -> the object that makes its samples and batches.
        readers: Task -> its open training reader.
        rebuild: (function, arguments) that make this plan again in a worker process. Nothing else is sent.
    Raises:
        ConfigError: One line; the setting's path first.
    """

    seed: int
    tasks: Mapping[str, TaskPlan]
    layout: Layout = "one_task"
    lanes: int = 1
    proportional: float | None = None
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    steps: int | None = None
    sources: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    readers: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    rebuild: tuple[Callable[..., Plan], tuple[Any, ...]] | None = field(
        default=None, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world and self.accumulate >= 1 and self.lanes >= 1
        _check(self)

    def __reduce__(self) -> tuple[Callable[..., Plan], tuple[Any, ...]]:
        if self.rebuild is None:
            raise ConfigError(
                "config.data.workers: this plan holds objects in memory and cannot be sent to worker "
                "processes; "
                "set data.workers=0, or give Plan.of_tasks a `rebuild`"
            )
        return self.rebuild

    @classmethod
    def of_tasks(
        cls,
        sources: Mapping[str, BatchSource],
        readers: Mapping[str, SampleReader] | None = None,
        *,
        seed: int,
        mixing: Collection[str] | None = None,
        layout: Layout = "one_task",
        lanes: int = 1,
        proportional: float | None = None,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        steps: int | None = None,
        rebuild: tuple[Callable[..., Plan], tuple[Any, ...]] | None = None,
    ) -> Plan:
        """The plan of a mixture of tasks, from their configurations and the sizes of their readers.

        Args:
            sources: Task -> task, in the mixture's order; its `config` says `share`, `batch_size`,
                `group_size` and `policy`.
            readers: Task -> its training reader, where open already.
            mixing: Tasks whose `mix` does something; None: all with groups. Only for these does a rank read
                whole groups that are spread over several ranks.
        """
        opened = dict(readers) if readers is not None else {n: s.reader("train") for n, s in sources.items()}
        tasks = {}
        for name, source in sources.items():
            mixes = source.config.group_size > 1 and (mixing is None or name in mixing)
            tasks[name] = TaskPlan.of_task(name, source.config, opened[name], mixes=mixes)
        return cls(
            seed,
            tasks,
            layout,
            lanes,
            proportional,
            rank,
            world,
            accumulate,
            steps,
            dict(sources),
            opened,
            rebuild,
        )

    @property
    def effective_lanes(self) -> int:
        """Lanes of the layout: `one_task` draws once a step, whatever `lanes` says."""
        return 1 if self.layout == "one_task" else self.lanes

    def rows_per_lane(self, task: str) -> int:
        """Rows that a draw of `task` brings."""
        return self.tasks[task].batch_size // self.effective_lanes

    def draws(self) -> Draws:
        """The order in which tasks are drawn.

        Raises:
            ConfigError: The shares cannot be laid out.
        """
        factors = {}
        if self.proportional is not None:
            for name, task in self.tasks.items():
                # Twelve digits: the last bits of a power differ between maths libraries.
                factors[name] = float(f"{(task.size / task.batch_size) ** self.proportional:.12g}")
        return Draws(self.seed, {name: task.share for name, task in self.tasks.items()}, factors)


@dataclass(frozen=True)
class Rows:
    """Rows of a task in one step: where they sit and what they show.

    Args:
        slots: Slot in the global batch (in mixed layouts: of a batch in which every lane drew the task).
        indices: Sample in the reader.
        draws: Number of the draw that brought the row; counts the task's draws from the start of the run.
        places: Row within that draw (for streams: the slot).
        starts: True where the row's stream begins.
        begun: Number of the draw in which the row's stream began; without streams, that of the row's own.
    """

    slots: Int64[np.ndarray, " n"]
    indices: Int64[np.ndarray, " n"]
    draws: Int64[np.ndarray, " n"]
    places: Int64[np.ndarray, " n"]
    starts: Bool[np.ndarray, " n"]
    begun: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(frozen=True)
class StepShape:
    """What a step holds, the same on all ranks, and how many micro-batches of it are this rank's."""

    number: int
    tasks: tuple[str, ...]
    weights: Mapping[str, float]
    sizes: Mapping[str, int]
    micro_batches: Mapping[str, int]


@dataclass(frozen=True)
class MicroRows:
    """Rows to read for one micro-batch.

    Args:
        rows: Rows to read and mix.
        own: Which of them are this rank's; fewer only where a group that is mixed lies on several ranks.
        group_ranks: Ranks over which one group is spread.
    """

    rows: Rows
    own: slice
    group_ranks: int


class Sampler:
    """Answers for any step, task and micro-batch which rows it holds. Keeps caches, but no state.

    Args:
        plan: The run's plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._names = tuple(plan.tasks)
        self._number_of = {name: number for number, name in enumerate(self._names)}
        self._draws = plan.draws()
        self._shuffles = Shuffles(plan.seed)
        self._streams = {
            name: Streams(self._shuffles, name, task.sequences, task.batch_size)
            for name, task in plan.tasks.items()
            if task.sequences is not None
        }
        self._orders = {
            name: TaskOrder(
                plan.seed,
                self._shuffles,
                name,
                task.size,
                plan.rows_per_lane(name),
                task.rates,
                task.buckets,
                task.block,
            )
            for name, task in plan.tasks.items()
            if task.sequences is None
        }

    def shape(self, step: int) -> StepShape:
        """Tasks, weights and sizes of a step."""
        plan = self.plan
        drawn = self._drawn(step)
        tasks = tuple(name for name in self._names if name in drawn)
        first, last = self._own_lanes()
        micro_batches = {
            name: plan.accumulate
            if plan.layout != "mixed_lanes" or any(first <= lane < last for lane in drawn[name])
            else 0
            for name in tasks
        }
        return StepShape(
            number=step,
            tasks=tasks,
            weights={name: len(drawn[name]) / plan.effective_lanes for name in tasks},
            sizes={name: len(drawn[name]) * plan.rows_per_lane(name) for name in tasks},
            micro_batches=micro_batches,
        )

    def rows(self, step: int, task: str) -> Rows:
        """The global batch of a task that is drawn in `step`, in slot order."""
        lanes = self._drawn(step)[task]
        return self._rows(step, task, lanes, 0, len(lanes) * self.plan.rows_per_lane(task))

    def peers(self, task: str, index: int) -> Integer[np.ndarray, " n"] | None:
        """Samples that may stand in for one that cannot be used; None is any."""
        return self._orders[task].peers(index) if task in self._orders else None

    def micro_rows(self, step: int, task: str, micro: int) -> MicroRows:
        """The rows of micro-batch `micro` (< accumulate) on the plan's rank.

        A global batch is cut into `accumulate` parts, and each part into one piece a rank, so that the ranks'
        pieces of one micro-batch are neighbours and may share groups.
        """
        plan, lanes = self.plan, self._drawn(step)[task]
        per_lane = plan.rows_per_lane(task)
        if plan.layout == "mixed_lanes":
            first, last = self._own_lanes()
            own = [lane for lane in lanes if first <= lane < last]
            size = len(own) * per_lane // plan.accumulate
            begin = lanes.index(own[0]) * per_lane + micro * size
        else:
            size = len(lanes) * per_lane // (plan.accumulate * plan.world)
            begin = (micro * plan.world + plan.rank) * size
        group, end = plan.tasks[task].group_size, begin + size
        if not plan.tasks[task].mixes:
            rows = self._rows(step, task, lanes, begin, end)
            return MicroRows(rows, slice(0, size), max(1, group // size))
        low, high = begin // group * group, -(-end // group) * group
        rows = self._rows(step, task, lanes, low, high)
        return MicroRows(rows, slice(begin - low, end - low), max(1, group // size))

    def _rows(self, step: int, task: str, lanes: list[int], begin: int, end: int) -> Rows:
        """Rows begin ... end of the global batch that `lanes` make up."""
        plan = self.plan.tasks[task]
        per_lane = self.plan.rows_per_lane(task)
        nth, places = np.divmod(np.arange(begin, end, dtype=np.int64), per_lane)
        slots = np.array(lanes, dtype=np.int64)[nth] * per_lane + places
        number = self._number_of[task]
        if plan.sequences is not None:
            # A stream belongs to its lane, so only the lane's own draws move it on.
            own = [self._draws.number(number, step, lane) for lane in lanes]
            draws = np.array(own, dtype=np.int64)[nth]
            frames = self._streams[task].frames(slots, draws)
            return Rows(slots, frames.indices, draws, slots, frames.starts, frames.begun)
        every_lane = range(self.plan.effective_lanes)
        before = sum(self._draws.number(number, step, lane) for lane in every_lane)
        draws = before + nth
        indices = self._orders[task].samples(draws, places)
        return Rows(slots, indices, draws, places, np.ones(end - begin, dtype=bool), draws)

    def _drawn(self, step: int) -> dict[str, list[int]]:
        """Task -> the lanes that draw it in `step`."""
        drawn: dict[str, list[int]] = {}
        for lane in range(self.plan.effective_lanes):
            drawn.setdefault(self._names[self._draws.task_at(step, lane)], []).append(lane)
        return drawn

    def _own_lanes(self) -> tuple[int, int]:
        lanes = self.plan.effective_lanes // self.plan.world if self.plan.layout == "mixed_lanes" else 0
        return self.plan.rank * lanes, (self.plan.rank + 1) * lanes


def _check(plan: Plan) -> None:
    """Refuse what cannot be laid out."""
    if plan.layout != "one_task" and plan.lanes % plan.world:
        raise ConfigError(
            f"config.sampling.lanes: {plan.lanes} lanes cannot be dealt to {plan.world} ranks; "
            f"expected a multiple of {plan.world}"
        )
    for name, task in plan.tasks.items():
        if task.size < 1:
            raise ConfigError(f"config.tasks.{name}.data: no training samples")
        _check_sizes(plan, name, task)
        _check_policy(plan, name, task)
        if task.sequences is not None:
            _check_streams(plan, name, task, task.sequences)
    plan.draws().check(plan.steps)


def _check_sizes(plan: Plan, name: str, task: TaskPlan) -> None:
    size, group = task.batch_size, task.group_size
    lanes, ranks = plan.effective_lanes, plan.world if plan.layout != "mixed_lanes" else 1
    if size % group:
        raise ConfigError(
            f"config.tasks.{name}.group_size: {group} does not divide batch_size {size}; "
            f"expected one of {_some(_divisors(size))}"
        )
    parts = lanes * ranks * plan.accumulate
    if size % parts:
        reasons = [f"{lanes} lanes"] * (lanes > 1) + [f"{ranks} ranks"] * (ranks > 1)
        reasons += [f"accumulate {plan.accumulate}"] * (plan.accumulate > 1)
        raise ConfigError(
            f"config.tasks.{name}.batch_size: {size} cannot be split evenly over {' x '.join(reasons)}; "
            f"expected a multiple of {parts}"
        )
    if size // lanes % group:
        raise ConfigError(
            f"config.tasks.{name}.group_size: {group} does not divide the {size // lanes} rows of a lane "
            f"(batch_size {size} / {lanes} lanes); expected one of {_some(_divisors(size // lanes))}"
        )
    for drawn in range(1, lanes + 1):
        piece = drawn * (size // parts)
        if piece % group == 0:
            continue
        is_gathered = plan.layout != "mixed_lanes" and group % piece == 0 and ranks % (group // piece) == 0
        if not is_gathered:
            on_ranks = f" on {ranks} ranks" if ranks > 1 else ""
            of_lanes = f", {lanes} lanes" if lanes > 1 else ""
            raise ConfigError(
                f"config.tasks.{name}.group_size: groups of {group} cannot be kept whole in micro-batches of "
                f"{piece} rows{on_ranks} (batch_size {size}, accumulate {plan.accumulate}{of_lanes}); "
                f"set a batch_size that is a multiple of {parts * group}"
            )


def _check_policy(plan: Plan, name: str, task: TaskPlan) -> None:
    path = f"config.tasks.{name}.policy"
    if task.sequences is not None and (task.rates is not None or task.buckets is not None or task.block):
        raise ConfigError(
            f"{path}: streams show all frames in order, so they cannot be balanced, bucketed or read in "
            "blocks; leave it out"
        )
    if task.buckets is not None and plan.effective_lanes > 1:
        raise ConfigError(
            f"{path}.bucket_by: a step of {plan.effective_lanes} lanes may draw the task several times, from "
            "different buckets; set sampling.layout=one_task, or bucket_by=none"
        )


def _check_streams(plan: Plan, name: str, task: TaskPlan, sequences: tuple[int, ...]) -> None:
    if sum(sequences) != task.size or min(sequences) < 1:
        raise ConfigError(
            f"config.tasks.{name}.data: its sequences hold {sum(sequences)} frames, the reader {task.size}; "
            f"expected sequences of at least 1 frame that add up to the reader's length"
        )
    if plan.layout == "mixed_batch":
        raise ConfigError(
            f"config.sampling.layout: mixed_batch deals rows to changing ranks, but task '{name}' has "
            "streams, "
            f"which must stay on theirs; set one_task or mixed_lanes"
        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _some(numbers: list[int]) -> str:
    shown = numbers if len(numbers) <= 8 else [*numbers[:4], *numbers[-4:]]
    return ", ".join(map(str, shown))
