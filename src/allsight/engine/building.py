"""From a configuration to its parts: tasks, model, plan, schedule. Training and prediction share this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from allsight.config import ConfigError, build, dump, dump_yaml, parse_yaml
from allsight.data.corrupt import Ledger
from allsight.data.sampler import Plan, TaskPlan
from allsight.data.text import Tokenizer
from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks
from allsight.engine.parallel.config import SHARDED
from allsight.engine.precision import Precision
from allsight.engine.schedule import Schedule, build_schedule
from allsight.engine.streams import seeded
from allsight.models.base import TaskModel, model_for_tasks
from allsight.tasks.base import Reader, Task, build_tasks


@dataclass(frozen=True)
class Built:
    """The parts of a training run."""

    tasks: dict[str, Task]
    model: TaskModel
    plan: Plan
    schedule: Schedule
    peak_lr: float
    ledger: Ledger
    tokenizer: Tokenizer | None


def build_run(config: RunConfig, ranks: Ranks) -> Built:
    """All parts of a training run.

    Raises:
        ConfigError: Settings contradict each other, the data or the number of ranks.
        DataError: A data set cannot be read.
    """
    tasks = build_tasks(config.tasks, config.data.folder())
    readers = {name: task.reader("train") for name, task in tasks.items()}
    for name, reader in readers.items():
        if len(reader) == 0:
            raise ConfigError(
                f"config.tasks.{name}.data: '{tasks[name].config.data}' holds no training samples"
            )
    only = next(iter(tasks)) if len(tasks) == 1 else None
    per_epoch = None
    if only:
        config_of_only = tasks[only].config
        plan_of_only = TaskPlan.of_task(only, config_of_only, readers[only], mixes=False)
        per_epoch = plan_of_only.epoch_size / config_of_only.batch_size
    schedule = build_schedule(config.schedule, steps_per_epoch=per_epoch)
    plan = build_plan(config, tasks, readers, ranks.rank, ranks.world, schedule.steps)
    model = build_model(config, tasks, _place(config, ranks))
    model.train()
    return Built(tasks, model, plan, schedule, _peak_lr(config, only), Ledger(), shared_tokenizer(tasks))


def shared_tokenizer(tasks: Mapping[str, Task]) -> Tokenizer | None:
    """The tokenizer of a mixture, None if no task has one.

    Raises:
        ConfigError: Tasks have different ones: a token id would mean different words to one model.
    """
    found = {name: task.tokenizer for name, task in tasks.items()}
    having = {name: tokenizer for name, tokenizer in found.items() if tokenizer is not None}
    first = next(iter(having), "")
    for name, tokenizer in having.items():
        if tokenizer.hash != having[first].hash:
            raise ConfigError(
                f"config.tasks.{name}: its tokenizer ({tokenizer.hash[:12]}) is not that of task '{first}' "
                f"({having[first].hash[:12]}); give all tasks of a run the same tokenizer.json"
            )
    return having.get(first)


def build_plan(
    config: RunConfig,
    tasks: Mapping[str, Task],
    readers: Mapping[str, Reader],
    rank: int,
    world: int,
    steps: int,
) -> Plan:
    """The order of a run's data on one rank.

    Raises:
        ConfigError: Sizes, shares, lanes or ranks contradict each other.
    """
    return Plan.of_tasks(
        tasks,
        readers,
        seed=config.seed,
        layout=config.sampling.layout,
        lanes=config.sampling.lanes,
        proportional=config.sampling.proportional,
        rank=rank,
        world=world,
        accumulate=config.train.accumulate,
        steps=steps,
        rebuild=(rebuild_plan, (dump_yaml(dump(config)), rank, world, steps)),
    )


def rebuilt_plan(config: RunConfig, tasks: Mapping[str, Task], ranks: Ranks, steps: int) -> Plan:
    """The order of a run's data under settings that changed in the middle of it.

    Raises:
        ConfigError: As `build_plan`.
    """
    readers = {name: task.reader("train") for name, task in tasks.items()}
    return build_plan(config, tasks, readers, ranks.rank, ranks.world, steps)


def rebuild_plan(text: str, rank: int, world: int, steps: int) -> Plan:
    """The plan again, in a worker process. The text is this very run's, so its code is trusted already."""
    config = build(RunConfig, parse_yaml(text, where="plan"), trust=True)
    tasks = build_tasks(config.tasks, config.data.folder())
    readers = {name: task.reader("train") for name, task in tasks.items()}
    return build_plan(config, tasks, readers, rank, world, steps)


def build_model(config: RunConfig, tasks: Mapping[str, Task], device: torch.device) -> TaskModel:
    """The model with its initial weights, a function of the seed alone."""
    with seeded(config.seed, "initialisation"):
        model = model_for_tasks(config.model, tasks)
    Precision(config.precision, device).prepare(model)
    return model.to(device)


def _place(config: RunConfig, ranks: Ranks) -> torch.device:
    """Where the model is made: one that will be sharded may not fit a device whole."""
    sharded = config.parallel.strategy in SHARDED and ranks.world > 1
    return torch.device("cpu") if sharded else ranks.device


def _peak_lr(config: RunConfig, only: str | None) -> float:
    if config.optim.lr_is_for_batch is None or only is None:
        return config.optim.lr
    return config.optim.lr * config.tasks[only].batch_size / config.optim.lr_is_for_batch
