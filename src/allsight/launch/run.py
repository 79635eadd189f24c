"""Starting the ranks of a run on this machine, through torchrun's own agent."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from allsight.config import replace

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig


def in_group() -> bool:
    """Whether torchrun (or something like it) started this process as one of several ranks."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process speaks for the run: the first rank, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def with_strategy(config: RunConfig, *, set_by_user: bool) -> RunConfig:
    """`config` with `parallel.strategy=ddp` where several ranks run and the user chose no strategy."""
    if in_group() and config.parallel.strategy == "single" and not set_by_user:
        return replace(config, {"parallel.strategy": "ddp"})
    return config


def run_ranks(words: Sequence[str], ranks: int) -> int:
    """Run `allsight WORDS` as `ranks` processes that know each other, and wait for them.

    Cores are shared out between the ranks unless OMP_NUM_THREADS says otherwise. Nothing is restarted: a run
    that ended is resumed from its checkpoint.

    Args:
        words: The command without the program's name; each rank runs it.
        ranks: Processes on this machine.
    Returns:
        The exit status: 0, or that of the rank that failed first (1 where it was killed).
    Source: the environment of the ranks is torchrun's, pytorch/pytorch:torch/distributed/run.py.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What went wrong is said by the rank itself, or by us below, in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        rdzv_configs={"timeout": 60},
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "allsight.cli", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (1, 2):
            return failure.exitcode
        print(
            f"rank {rank} ended with exit status {failure.exitcode}; the others were stopped", file=sys.stderr
        )
        return 1
    except SignalException as error:
        # Ctrl-C reached the ranks too; they have said what they had to say.
        return 128 + int(error.sigval)
    return 0


def usable_cores() -> int:
    """Cores this process may use, which under a scheduler can be fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
