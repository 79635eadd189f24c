"""What a run would take on given machines, before anybody rents them: memory, time, the best strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from allsight.config import ConfigError
from allsight.engine.budget.machines import MACHINES, Machine, machine
from allsight.engine.budget.passes import PassCost, build_without_memory, pass_cost, without_memory
from allsight.engine.budget.state import Held, Sizes, held, messages
from allsight.engine.config import RunConfig
from allsight.engine.parallel.config import SHARDED, Strategy
from allsight.engine.parallel.experts import check_expert_ranks
from allsight.engine.precision import HALF
from allsight.engine.schedule import build_schedule
from allsight.launch.plan.example import data_size, example_batch
from allsight.tasks.base import build_tasks

__all__ = ["MACHINES", "Choice", "Plan", "TaskCost", "plan_run"]

_USABLE = 0.92
"""Of a device's memory: the rest is the runtime's, the communication's and what allocators cannot fill."""
_REACHED = 0.6
"""Of the data sheet's figures, by operators of ordinary size."""
_ROWS = (4, 8)
"""Passes that are counted; of fewer rows the peak can be that of the weights' gradients."""
_HIDDEN = 0.8
"""Of the communication that can run beside computation, how much does."""


@dataclass(frozen=True)
class TaskCost:
    """One pass of one task: what it takes in any number of rows, as a line through what was counted.

    Args:
        share: Of the steps.
        batch_size: Global rows of a step.
        row_bytes: Peak of activations of each further row.
        row_exchanged: Bytes that a row's tokens and their experts send, were all on other ranks.
        fixed_s, row_s: Forward and backward on one device: what is there anyway, and for each row.
        row_flops: Forward and backward.
        made_from: What the example was made from.
        passes: What was counted, of few rows and of more.
    """

    share: float
    batch_size: int
    row_bytes: float
    row_exchanged: float
    fixed_s: float
    row_s: float
    row_flops: float
    made_from: str
    passes: tuple[PassCost, PassCost]

    def activations(self, rows: int) -> int:
        """Peak beyond weights and gradients."""
        return self._peak(rows, lambda cost: cost.peak_bytes)

    def with_gradients(self, rows: int) -> int:
        """Peak beyond weights, where gradients come one by one while activations go."""
        return self._peak(rows, lambda cost: cost.peak_with_gradients)

    def sharded(self, rows: int, shards: int, *, reshards: bool) -> int:
        """Peak beyond the shards of weights, optimiser and average."""
        return self._peak(rows, lambda cost: cost.sharded_peak(shards, reshards=reshards))

    def seconds(self, rows: int) -> float:
        return self.fixed_s + rows * self.row_s

    def _peak(self, rows: int, counted: Callable[[PassCost], int]) -> int:
        few, more = self.passes
        slope = (counted(more) - counted(few)) / (more.rows - few.rows)
        return max(0, int(counted(few) + (rows - few.rows) * slope))


@dataclass(frozen=True)
class Choice:
    """One way to run a step.

    Args:
        micro_batch: Task -> rows of a pass on one rank.
        held: Of the state, on one rank.
        activations: Bytes on one rank, of the task that takes most.
        evaluation: Bytes on one rank while all weights are gathered to judge the model.
        peak: Most bytes at once on one rank.
        fits: Into the memory of the device.
        compute_s, communication_s, step_s: Of a mean step.
    """

    strategy: Strategy
    accumulate: int
    micro_batch: Mapping[str, int]
    held: Held
    activations: int
    evaluation: int
    peak: int
    fits: bool
    compute_s: float
    communication_s: float
    step_s: float


@dataclass(frozen=True)
class Plan:
    """The answer of `plan_run`. `choices` has for each strategy the best way that fits, else the smallest."""

    gpus: int
    kind: str
    sizes: Sizes
    tasks: Mapping[str, TaskCost]
    choices: tuple[Choice, ...]
    best: Choice | None
    steps: int | None
    flops_per_step: float

    @property
    def seconds(self) -> float | None:
        """Of the whole schedule, evaluations and checkpoints not counted."""
        return None if self.steps is None or self.best is None else self.steps * self.best.step_s

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tasks = {
            name: {f.name: getattr(cost, f.name) for f in fields(cost) if f.name != "passes"}
            for name, cost in self.tasks.items()
        }
        found = {**asdict(replace(self, tasks={})), "tasks": tasks, "seconds": self.seconds}
        del found["sizes"]["shapes"]
        return found


def plan_run(
    config: RunConfig,
    *,
    gpus: int,
    kind: str,
    strategies: Sequence[Strategy] = ("single", "ddp", "fsdp", "hsdp"),
    samples: Mapping[str, int] | None = None,
    copies: bool = False,
) -> Plan:
    """Memory and time of a run on `gpus` devices of a kind. The model is never made, only its shapes.

    Memory is counted; time is a small model: each operator is limited by arithmetic or by memory traffic at
    60 % of the data sheet, exchanges are rings, and four fifths of what can be hidden behind computation is.

    Args:
        strategies: Which to look at.
        samples: Task -> samples of its training set, where the data are not here.
        copies: The library that sends copies each message, as gloo does on CPUs and NCCL does not.
    Raises:
        ConfigError: No such machine, a batch or experts that the ranks cannot share, or a model that needs
            real data.
    """
    device = machine(kind)
    tasks = build_tasks(config.tasks, config.data.folder())
    # Real batches, made before: transforms look at pixels.
    examples = {name: [example_batch(task, rows) for rows in _ROWS] for name, task in tasks.items()}
    with without_memory() as mode:
        model = build_without_memory(config, tasks)
        if gpus > 1 and config.parallel.expert_ranks > 1:
            check_expert_ranks(model, config.parallel.expert_ranks, gpus)
        sizes = Sizes.of(model, config)
        costs = {}
        shares = _shares(config)
        for name, task in tasks.items():
            passes = [
                pass_cost(
                    model,
                    batch,
                    precision=config.precision,
                    mode=mode,
                    parallel=config.parallel if gpus > 1 else None,
                    copies=copies,
                )
                for batch, _ in examples[name]
            ]
            said = examples[name][0][1]
            costs[name] = _line(passes, shares[name], task.config.batch_size, said, device, config.precision)
    ways = [way for strategy in strategies for way in _ways(config, costs, sizes, strategy, gpus, device)]
    choices = tuple(
        min((way for way in ways if way.strategy == strategy), key=_rank)
        for strategy in dict.fromkeys(way.strategy for way in ways)
    )
    if not choices:
        raise ConfigError(f"--gpus: no strategy of {', '.join(strategies)} runs on {gpus} devices")
    fastest = min(choices, key=_rank)
    # The simplest that is as fast; strategies are named in the order of their simplicity.
    best = next(c for c in choices if c.fits == fastest.fits and c.step_s <= 1.02 * fastest.step_s)
    flops = sum(cost.share * cost.batch_size * cost.row_flops for cost in costs.values())
    return Plan(
        gpus,
        kind,
        sizes,
        costs,
        choices,
        best if best.fits else None,
        _steps(config, tasks, samples or {}),
        flops,
    )


def _rank(choice: Choice) -> tuple[bool, float, int]:
    """What fits is better than what does not, fast than slow; of what does not fit, the smallest is shown."""
    return not choice.fits, choice.step_s if choice.fits else choice.peak, choice.accumulate


def _line(
    passes: Sequence[PassCost], share: float, batch: int, said: str, device: Machine, precision: str
) -> TaskCost:
    few, more = passes
    step = more.rows - few.rows
    flops = (device.half_flops if precision in HALF else device.single_flops) * _REACHED
    seconds = [p.work.seconds(flops, device.memory_bytes_per_s * _REACHED) for p in passes]
    row_s = (seconds[1] - seconds[0]) / step
    return TaskCost(
        share,
        batch,
        (more.peak_bytes - few.peak_bytes) / step,
        (more.exchanged - few.exchanged) / step,
        max(0.0, seconds[0] - few.rows * row_s),
        row_s,
        (more.work.flops - few.work.flops) / step,
        said,
        (few, more),
    )


def _shares(config: RunConfig) -> dict[str, float]:
    """Mean share of the steps; one that changes over the run counts as it is at the end."""
    given = {
        name: float(task.share[-1][1] if isinstance(task.share, tuple) else task.share)
        for name, task in config.tasks.items()
    }
    total = sum(given.values())
    return {name: value / total for name, value in given.items()}


def _ways(
    config: RunConfig,
    costs: Mapping[str, TaskCost],
    sizes: Sizes,
    strategy: Strategy,
    gpus: int,
    device: Machine,
) -> list[Choice]:
    """All numbers of micro-batches that divide the batch."""
    if (strategy == "single") != (gpus == 1):
        return []
    shards = {"fsdp": gpus, "hsdp": config.parallel.fsdp.shard_ranks or device.per_machine}.get(strategy, 1)
    if gpus % shards or (strategy == "hsdp" and shards == gpus):
        return []
    half = config.parallel.fsdp.gather_half and config.precision in HALF

    def speed(ranks: int) -> float:
        """Bytes per second that a message over so many ranks reaches."""
        near = ranks <= device.per_machine
        return _REACHED * (device.near_bytes_per_s if near else device.far_bytes_per_s)

    found = []
    for accumulate in range(1, max(cost.batch_size for cost in costs.values()) // gpus + 1):
        groups = {name: task.group_size for name, task in config.tasks.items()}
        if any(cost.batch_size % (gpus * accumulate * groups[name]) for name, cost in costs.items()):
            continue
        rows = {name: cost.batch_size // (gpus * accumulate) for name, cost in costs.items()}
        state = held(sizes, config, strategy, shards=shards, accumulate=accumulate, half=half)
        activations = max(cost.activations(rows[name]) for name, cost in costs.items())
        gathered = sizes.parameters if strategy in SHARDED else sizes.experts if gpus > 1 else 0
        evaluation = state.kept + gathered * sizes.width
        if accumulate > 1 or strategy not in ("single", *SHARDED):
            passes = state.total + activations
        elif strategy == "single":
            # Gradients come one by one while activations go.
            passes = state.kept - state.gradients + max(c.with_gradients(rows[n]) for n, c in costs.items())
        else:
            reshards = config.parallel.fsdp.reshard
            passes = state.kept - state.gradients
            passes += max(c.sharded(rows[n], shards, reshards=reshards) for n, c in costs.items())
        peak = max(passes, state.kept + state.update, evaluation)
        compute = sum(cost.share * accumulate * cost.seconds(rows[name]) for name, cost in costs.items())
        compute += _update_s(state, device)
        sent = messages(sizes, config, strategy, ranks=gpus, shards=shards, accumulate=accumulate, half=half)
        communication = sum(size / speed(n) for n, size in sent)
        exchange = accumulate * sum(c.share * rows[n] * c.row_exchanged for n, c in costs.items())
        experts = config.parallel.expert_ranks
        exchange_s = (experts - 1) / experts * exchange / speed(experts)
        way = Choice(
            strategy,
            accumulate,
            rows,
            state,
            activations,
            evaluation,
            peak,
            False,
            compute,
            communication + exchange_s,
            # Nothing can be computed while tokens travel.
            max(compute, communication) + (1 - _HIDDEN) * min(compute, communication) + exchange_s,
        )
        found.append(replace(way, fits=way.peak <= _USABLE * device.memory_bytes))
    return found


def _update_s(state: Held, device: Machine) -> float:
    """The optimiser reads and writes all that it works on."""
    touched = 2 * (state.parameters + state.optimiser + state.average) + state.gradients
    return touched / (device.memory_bytes_per_s * _REACHED)


def _steps(config: RunConfig, tasks: Mapping[str, Any], samples: Mapping[str, int]) -> int | None:
    if config.schedule.steps is not None:
        return config.schedule.steps
    task = next(iter(tasks.values()))
    size = data_size(task, samples)
    if size is None:
        return None
    return build_schedule(config.schedule, steps_per_epoch=size / task.config.batch_size).steps
