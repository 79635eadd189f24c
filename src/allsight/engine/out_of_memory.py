"""What to do when a step does not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks
from allsight.types import Step


class StepTooLarge(RuntimeError):
    """A step did not fit into the memory of some rank; nothing but gradients was changed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def lack_of_memory(stage: str, step: Step, config: RunConfig, ranks: Ranks, held: Mapping[str, int]) -> str:
    """One line: where memory ran out, and the two settings that save most of it.

    Args:
        stage: What was being done, such as `forward and backward`.
        held: `state` (parameters, gradients, optimiser, average) and `average` alone, in bytes on this rank.
    """
    rows = {task: [len(batch) for batch in step.batches[task]] for task in step.tasks}
    sizes = ", ".join(f"{max(found, default=0)} of '{task}'" for task, found in rows.items())
    savings = sorted(_savings(config, ranks, held), reverse=True)[:2]
    advice = " or ".join(f"{setting} (saves about {saved / 2**30:.2g} GiB)" for saved, setting in savings)
    return (
        f"out of memory in {stage} of step {step.number} on rank {ranks.rank} with micro-batches of {sizes}; "
        f"set {advice}; `allsight plan` shows what fits"
    )


def _savings(config: RunConfig, ranks: Ranks, held: Mapping[str, int]) -> list[tuple[float, str]]:
    """(bytes per rank, setting) of what could be changed."""
    found: list[tuple[float, str]] = []
    # What was in use beyond the state, at the least, when memory ran out.
    activations = max(0, _in_use(ranks) - held["state"])
    found.append((activations / 2, f"train.accumulate={2 * config.train.accumulate}"))
    if config.precision == "fp32":
        found.append((activations * 0.45, "precision=bf16"))
    if ranks.world > 1 and config.parallel.strategy == "ddp":
        found.append((held["state"] * (1 - 1 / ranks.world), "parallel.strategy=fsdp"))
    if held["average"]:
        found.append((held["average"], "optim.ema_decay=null"))
    return found


def _in_use(ranks: Ranks) -> int:
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
