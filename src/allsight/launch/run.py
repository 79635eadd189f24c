"""Starting the ranks of a run on this machine, through torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from allsight.config import ConfigError, replace
from allsight.engine.network import address_towards, free_port, is_own_address, is_taken

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

    from allsight.engine.config import RunConfig


def in_group() -> bool:
    """Whether torchrun (or something like it) started this process as one of several ranks."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process speaks for the run: the first rank, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def was_restarted() -> bool:
    """Whether an earlier attempt of this very command may have left checkpoints (torchrun, Slurm)."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


def with_strategy(config: RunConfig, *, set_by_user: bool) -> RunConfig:
    """`config` with `parallel.strategy=ddp` where several ranks run and the user chose no strategy."""
    if in_group() and config.parallel.strategy == "single" and not set_by_user:
        return replace(config, {"parallel.strategy": "ddp"})
    return config


STOPPED = 75
"""Exit status of a run that was told to stop and saved: run it again to go on (sysexits.h: EX_TEMPFAIL)."""

_SECONDS_TO_STOP = "120"
"""How long ranks may take to end their step and save, before they are killed."""


@dataclass(frozen=True)
class Group:
    """The processes of a run on one or several machines.

    Args:
        ranks: Processes on this machine.
        min_nodes: So many machines are enough to go on,
        max_nodes: and so many are waited for at first.
        meeting: `HOST:PORT` of the first machine, where several meet.
        max_restarts: How often the ranks are started anew after one died or machines came or went.
        timeout_s: How long to wait for machines.
    """

    ranks: int
    min_nodes: int = 1
    max_nodes: int = 1
    meeting: str = ""
    max_restarts: int = 0
    timeout_s: float = 60.0

    @property
    def is_elastic(self) -> bool:
        """Whether ranks may be started again, and so must be able to go on with what they find."""
        return self.max_restarts > 0 or self.min_nodes < self.max_nodes


def run_ranks(words: Sequence[str], group: Group) -> int:
    """Run `allsight WORDS` as ranks that know each other, and wait for them.

    Cores are shared out between the ranks unless OMP_NUM_THREADS says otherwise. SIGTERM and SIGUSR1 are
    passed on to the ranks, which save and stop.

    Args:
        words: The command without the program's name; each rank runs it.
    Returns:
        The exit status: 0, or that of the rank that failed first (1 where it was killed).
    Raises:
        ConfigError: Machines cannot meet there.
    Source: the environment of the ranks is torchrun's, pytorch/pytorch:torch/distributed/run.py.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import (
        RendezvousConnectionError,
        RendezvousError,
        RendezvousGracefulExitError,
    )
    from torch.distributed.launcher.api import elastic_launch

    # What went wrong is said by the rank itself, or by us below, in one line.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // group.ranks)))
    try:
        elastic_launch(_settings(group), sys.executable)("-m", "allsight.cli", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (1, 2, STOPPED):
            return failure.exitcode
        print(
            f"rank {rank} ended with exit status {failure.exitcode}; the others were stopped", file=sys.stderr
        )
        return 1
    except SignalException as error:
        # The signal reached the ranks too; they have said what they had to say.
        is_request = error.sigval in (signal.SIGTERM, signal.SIGUSR1)
        return STOPPED if is_request else 128 + int(error.sigval)
    except RendezvousGracefulExitError:
        print("the other machines have ended the run", file=sys.stderr)
        return 1
    except RendezvousConnectionError:
        raise ConfigError(
            f"--rendezvous {group.meeting}: nobody answers there; it must be an address of a machine on "
            "which the same command runs, and a port that others may reach"
        ) from None
    except RendezvousError as error:
        raise ConfigError(
            f"--rendezvous {group.meeting}: fewer than {group.min_nodes} machines came within "
            f"{group.timeout_s:g} s; type the same command on each, or raise parallel.timeout_s "
            f"({type(error).__name__})"
        ) from None
    return 0


def _settings(group: Group) -> LaunchConfig:
    """The settings of PyTorch's agent."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    meeting, own, is_host = "localhost:0", "localhost", True
    if group.meeting:
        meeting = group.meeting
        own, is_host = _own_place(group.meeting)
        # Else agents would look for the store of a first machine that has gone.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_STOP)
    return LaunchConfig(
        min_nodes=group.min_nodes,
        max_nodes=group.max_nodes,
        nproc_per_node=group.ranks,
        # Machines with different commands shall meet, so that ranks can say what differs.
        run_id="allsight" if group.meeting else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=meeting,
        rdzv_configs={"timeout": round(group.timeout_s), "is_host": str(is_host).lower()},
        local_addr=own,
        max_restarts=group.max_restarts,
        logs_specs=DefaultLogsSpecs(),
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )


def _own_place(meeting: str) -> tuple[str, bool]:
    """This machine's address as the others see it, and whether it is the one where they meet.

    Raises:
        ConfigError: No HOST:PORT, no way there, or the port is taken.
    """
    host, colon, port = meeting.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--rendezvous {meeting}: expected HOST:PORT, such as node1:29400")
    own = address_towards(host)
    if own is None:
        raise ConfigError(
            f"--rendezvous {meeting}: this machine knows no way to '{host}'; give an address of the first "
            "machine"
        )
    is_host = is_own_address(host)
    if is_host and is_taken(int(port)):
        raise ConfigError(
            f"--rendezvous {meeting}: port {port} of this machine is taken by another program; {free_port()} "
            "is free: give it on all machines"
        )
    return own, is_host


def usable_cores() -> int:
    """Cores this process may use, which under a scheduler can be fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
