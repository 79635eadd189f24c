"""The processes of a run and the few things they say to each other."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from allsight.config import ConfigError
from allsight.engine.heartbeat import dead_ranks, hung_ranks, start_heartbeat
from allsight.engine.joining import Place, RanksMissing, meet, named
from allsight.engine.network import interface_towards


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run: `rank` of `world`, and the device it works on.

    `group` is the line they speak on; None is the one that training uses. `store` is where they met.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    store: dist.Store | None = field(default=None, compare=False, repr=False)

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

    @contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Within, that a message did not get through becomes a line that names who does not answer.

        Raises:
            RanksMissing: In place of PyTorch's own error.
        """
        try:
            yield
        except RanksMissing:
            raise
        except RuntimeError as error:
            text = str(error)
            if self.store is None or not any(sign in text for sign in _SIGNS_OF_LOSS):
                raise
            if "Timed out" in text:
                found, what = hung_ranks(self.store, self.rank, self.world), "get on any more"
            else:
                found, what = dead_ranks(self.store, self.world), "answer any more"
            if not found:
                raise RanksMissing(
                    f"lost touch with other ranks; see what they said ({text.splitlines()[0]})"
                ) from error
            does = "does" if len(found) == 1 else "do"
            raise RanksMissing(f"{named(found)} {does} not {what}; see what was said there") from error

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
        ConfigError: Several processes were started for a strategy that uses one; no such device; port taken.
        RanksMissing: Not all came in time.
    """
    global _joined
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and strategy == "single":
        raise ConfigError(
            f"config.parallel.strategy: 'single' uses one process, but {world} were started; "
            f"set parallel.strategy=ddp"
        )
    if world == 1:
        return Ranks(device=pick_device(device, 0))
    place = Place.of_environment()
    picked = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        _joined = _start_group(place, picked, timeout_s)
    return Ranks(place.rank, world, picked, store=_joined)


_joined: dist.Store | None = None
"""Where the ranks of this process met; a process joins once, however many runs it makes."""

_SIGNS_OF_LOSS = ("gloo/", "NCCL", "c10d")
"""In what PyTorch says where a message did not get through."""


def _start_group(place: Place, device: torch.device, timeout_s: float) -> dist.Store:
    if int(os.environ.get("LOCAL_WORLD_SIZE", place.world)) < place.world:
        # Left alone, gloo takes the address that the machine's name leads to, which others may not reach.
        interface = interface_towards(place.host)
        if interface is not None and interface != "lo":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store = meet(place, timeout_s)
    start_heartbeat(store, place.rank)
    # Small things that ranks say to each other stay on the CPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world, timeout=timedelta(seconds=timeout_s)
    )
    atexit.register(_leave)
    return store


def _leave() -> None:
    """End the threads of all groups while Python is still there.

    They let go of Python's objects after the last message, later than whoever waited for it goes on. One that
    does so when Python is being taken down takes the process with it ("terminate called ...").
    """
    if dist.is_initialized():
        dist.destroy_process_group()


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
        count = torch.cuda.device_count()
        # A scheduler may show each rank its own GPU only.
        number = 0 if count == 1 else local_rank
        if number >= count:
            raise ConfigError(
                f"device: rank {local_rank} of this machine has no GPU of its own, there are {count}; start "
                f"{count} ranks on it, or use device=cpu"
            )
        picked = torch.device("cuda", number)
        torch.cuda.set_device(picked)
        return picked
    return torch.device("cpu")
