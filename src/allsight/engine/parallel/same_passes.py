"""Where ranks speak to each other in the middle of a pass, all must run the same passes."""

from __future__ import annotations

import zlib

import torch

from allsight.engine.distributed import Ranks
from allsight.types import Step


class RanksDisagree(RuntimeError):
    """Ranks were about to run different layers in one step, which would mix what belongs to them."""


def check_same_passes(step: Step, ranks: Ranks) -> None:
    """Check that all ranks are about to run the same passes.

    Raises:
        RanksDisagree: They are not.
    """
    passes = [name for name in step.tasks for _ in step.batches[name]]
    # Twenty bits, so that sums of squares over ranks are exact. Only equal numbers have no variance.
    mark = zlib.crc32("\n".join(passes).encode()) & 0xFFFFF
    sums = ranks.sum(torch.tensor([mark, mark**2], dtype=torch.float64))
    if sums.tolist() != [mark * ranks.world, mark**2 * ranks.world]:
        found = ranks.gather(passes)
        raise RanksDisagree(
            f"step {step.number}: ranks run different passes ("
            + "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in enumerate(found))
            + "); sharded weights would mix: use sampling.layout=one_task, or parallel.strategy=ddp"
        )
