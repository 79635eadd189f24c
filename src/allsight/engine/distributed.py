"""The processes of a run and the few things they say to each other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from allsight.config import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run: `rank` of `world`, and the device it works on.

    `group` is the line they speak on; None is the one that training uses.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Each rank's `value`, in rank order, on every rank. For small and rare things."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.group)
        return found

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            dist.barrier(group=self.group)

    def share_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` on all ranks with those of rank 0."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self.group)

    def apart(self) -> Ranks:
        """The same ranks on a line of their own, for a thread beside the training. All ranks call this."""
        if self.world == 1:
            return self
        return replace(self, device=torch.device("cpu"), group=dist.new_group(backend="gloo"))


def join_ranks(strategy: str, timeout_s: float, device: str | None = None) -> Ranks:
    """Join the processes that torchrun started, or be the only one.

    Args:
        strategy: `parallel.strategy`.
        timeout_s: How long to wait for a missing rank.
        device: `cpu`, `cuda`, ...; None takes the GPU of this rank if there is one.
    Raises:
        ConfigError: Several processes were started for a strategy that uses one; no such device.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and strategy == "single":
        raise ConfigError(
            f"config.parallel.strategy: 'single' uses one process, but {world} were started; "
            f"set parallel.strategy=ddp"
        )
    if world == 1:
        return Ranks(device=pick_device(device, 0))
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    picked = pick_device(device, local)
    if not dist.is_initialized():
        _start_group(rank, world, picked, timedelta(seconds=timeout_s))
    return Ranks(rank, world, picked)


def _start_group(rank: int, world: int, device: torch.device, timeout: timedelta) -> None:
    # Small things that ranks say to each other stay on the CPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        # torchrun's store outlives an attempt; without a prefix, restarted ranks read dead ranks' addresses.
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.PrefixStore(
            f"try{os.environ['TORCHELASTIC_RESTART_COUNT']}",
            dist.TCPStore(host, port, is_master=False, timeout=timeout),
        )
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    else:
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout)


def pick_device(device: str | None, local_rank: int) -> torch.device:
    """The device a rank works on.

    Args:
        device: `cpu`, `cuda`, ...; None takes the GPU of this rank if there is one.
    Raises:
        ConfigError: No such device here.
    """
    if device is not None:
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"device: '{device}' cannot be used here: {reason}") from error
    if torch.cuda.is_available():
        picked = torch.device("cuda", local_rank)
        torch.cuda.set_device(picked)
        return picked
    return torch.device("cpu")
