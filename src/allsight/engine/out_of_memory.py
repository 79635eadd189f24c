"""What to do when a step does not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from allsight.engine.budget.savings import savings
from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks
from allsight.engine.profiler.clock import Phase
from allsight.tasks.base import Task
from allsight.types import Batch

Stage = Phase | Literal["evaluation"]
_STAGES: dict[str, str] = {
    "data": "moving the data",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "exchange": "the exchange between ranks",
    "optimiser": "the optimiser's update",
    "evaluation": "evaluation",
}


class StepTooLarge(RuntimeError):
    """A step did not fit into the memory of some rank; nothing but gradients was changed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def lack_of_memory(
    stage: Stage,
    number: int,
    batches: Sequence[Batch],
    config: RunConfig,
    tasks: Mapping[str, Task],
    ranks: Ranks,
) -> str:
    """One line: where memory ran out, and the two settings that save most of it, as `allsight plan` counts.

    Args:
        stage: What was being done.
        number: Of the step.
        batches: Micro-batches of the step on this rank; of an evaluation none.
    """
    sizes: dict[str, int] = {}
    for batch in batches:
        sizes[batch.task] = max(sizes.get(batch.task, 0), len(batch))
    rows = ", ".join(f"{size} of '{task}'" for task, size in sizes.items())
    with_rows = f" with micro-batches of {rows}" if rows else ""
    has_activations = stage in ("forward", "backward")
    if stage == "evaluation":
        advice = f"set eval.batch_size below {_eval_rows(config, ranks)}"
    else:
        advice = _advice(config, tasks, batches if has_activations else [], ranks)
    return (
        f"out of memory in {_STAGES[stage]} of step {number} on rank {ranks.rank}{with_rows}; {advice}; "
        "`allsight plan` shows what fits"
    )


def _advice(config: RunConfig, tasks: Mapping[str, Task], batches: Sequence[Batch], ranks: Ranks) -> str:
    try:
        found = savings(config, tasks, batches, ranks.world)
    except Exception as error:  # Whatever a model does without contents, the lack of memory is to be told.
        reason = str(error).partition("\n")[0]
        return f"set train.accumulate={2 * config.train.accumulate} (what that saves is not known: {reason})"
    if not found:
        return "use devices with more memory, or more of them with parallel.strategy=fsdp"
    words = [f"{setting} (saves about {_size(saved)})" for saved, setting in found[:2]]
    return f"set {' or '.join(words)}"


def _eval_rows(config: RunConfig, ranks: Ranks) -> int:
    if config.eval.batch_size is not None:
        return config.eval.batch_size
    return max(task.batch_size for task in config.tasks.values()) // (ranks.world * config.train.accumulate)


def _size(count: int) -> str:
    return f"{count / 2**30:.2g} GiB" if count >= 2**27 else f"{count / 2**20:.2g} MiB"
