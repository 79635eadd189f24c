"""Which settings would save most memory, counted for the step that did not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as replace_fields
from typing import Any

from torch import Tensor

from allsight.config import dump, replace
from allsight.engine.budget.passes import build_without_memory, pass_cost, without_memory
from allsight.engine.budget.state import Sizes, held
from allsight.engine.config import RunConfig
from allsight.engine.parallel.config import SHARDED
from allsight.engine.precision import HALF
from allsight.tasks.base import Task
from allsight.types import Batch
from allsight.types.batches import map_tensors


def savings(
    config: RunConfig, tasks: Mapping[str, Task], batches: Sequence[Batch], world: int
) -> list[tuple[int, str]]:
    """(bytes that a rank would save, setting), most first, of all that can be changed.

    Args:
        batches: Micro-batches of the passes that the savings are counted for; none: savings in the update.
        world: Ranks.
    Raises:
        ConfigError: The model cannot be counted, since its forward depends on what pictures show.
    """
    # On the CPU nothing of the device's memory is needed; fake copies need none at all.
    batches = [batch.to("cpu") for batch in _largest(batches)]
    now = _needed(config, tasks, batches, world)
    found = []
    for setting, changed in _changes(config, batches, world):
        splits = changed.train.accumulate > config.train.accumulate
        saved = now - _needed(changed, tasks, [_half(b) for b in batches] if splits else batches, world)
        if saved > 0:
            found.append((saved, setting))
    return sorted(found, key=lambda each: -each[0])


def remat_paths(config: RunConfig) -> list[str]:
    """Dotted paths of all settings of recomputation in a model."""
    return list(_paths_of_remat(dump(config)["model"], "model"))


def _paths_of_remat(tree: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in tree.items():
        if key == "remat" and isinstance(value, str):
            yield f"{path}.{key}"
        elif isinstance(value, Mapping):
            yield from _paths_of_remat(value, f"{path}.{key}")


def _largest(batches: Sequence[Batch]) -> list[Batch]:
    """The largest micro-batch of each task."""
    found: dict[str, Batch] = {}
    for batch in batches:
        if len(batch) and (batch.task not in found or len(batch) > len(found[batch.task])):
            found[batch.task] = batch
    return list(found.values())


def _changes(config: RunConfig, batches: Sequence[Batch], world: int) -> Iterator[tuple[str, RunConfig]]:
    """What could be set, in words, and the run with it."""
    settings: list[dict[str, Any]] = []
    if any(len(batch) > 1 for batch in batches):
        settings.append({"train.accumulate": 2 * config.train.accumulate})
    plain = [path for path in remat_paths(config) if batches and _at(config, path) != "block"]
    if plain:
        settings += [dict.fromkeys(plain, kind) for kind in ("selective", "block")]
    if config.precision == "fp32" and batches:
        settings.append({"precision": "bf16"})
    if world > 1 and config.parallel.strategy not in SHARDED:
        settings.append({"parallel.strategy": "fsdp"})
    parallel = config.parallel
    if (
        parallel.strategy in SHARDED
        and not parallel.fsdp.offload
        and parallel.expert_ranks == 1
        and world > 1
    ):
        settings.append({"parallel.fsdp.offload": True})
    if config.optim.ema_decay is not None and config.eval.weights != "ema":
        settings.append({"optim.ema_decay": None})
    for changes in settings:
        words = " ".join(f"{path}={_typed(value)}" for path, value in changes.items())
        yield words, replace(config, changes)


def _half(batch: Batch) -> Batch:
    """The first half of the rows."""
    rows = len(batch)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[: -(-rows // 2)] if tensor.ndim and len(tensor) == rows else tensor

    return replace_fields(map_tensors(cut, batch), ids=batch.ids[: -(-rows // 2)])


def _needed(config: RunConfig, tasks: Mapping[str, Task], batches: Sequence[Batch], world: int) -> int:
    """Bytes on one rank."""
    strategy = config.parallel.strategy
    shards = 1
    if strategy in SHARDED:
        shards = (config.parallel.fsdp.shard_ranks if strategy == "hsdp" else None) or world
    half = config.parallel.fsdp.gather_half and config.precision in HALF
    activations = 0
    with without_memory() as mode:
        model = build_without_memory(config, tasks)
        sizes = Sizes.of(model, config)
        for batch in batches:
            parallel = config.parallel if world > 1 else None
            cost = pass_cost(model, batch, precision=config.precision, mode=mode, parallel=parallel)
            activations = max(activations, cost.peak_bytes)
    state = held(sizes, config, strategy, shards=shards, accumulate=config.train.accumulate, half=half)
    offloads = config.parallel.fsdp.offload and strategy in SHARDED
    kept = 0 if offloads else state.kept
    if batches:
        return kept + state.gathered + activations
    return kept + (0 if offloads else state.update)


def _at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _typed(value: Any) -> str:
    return {None: "null", True: "true"}.get(value, str(value))
