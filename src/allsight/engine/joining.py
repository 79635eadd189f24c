"""How the processes of a run find each other: the first rank's store, a roll call, and who is missing.

Under torchrun one store outlives restarts, and machines that come back count restarts from zero. So ranks do
not trust what they find there: the first one calls the roll under a fresh mark, and only keys below this mark
are used by the attempt.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from allsight.config import ConfigError
from allsight.engine.network import free_port, is_taken

_POLL_S = 0.02
_GRACE_S = 5.0
"""How much longer than the first rank the others wait for its word on who is missing."""


class RanksMissing(RuntimeError):
    """Ranks did not come, or no longer answer; the message names them."""


@dataclass(frozen=True)
class Place:
    """Where the ranks meet, and who this one is.

    Args:
        rank: Of this process among `world`.
        host: Name or address of the machine with the store.
        port: Its port.
        hosts: Whether this process must start the store; torchrun keeps one in its own process.
    """

    rank: int
    world: int
    host: str
    port: int
    hosts: bool

    @classmethod
    def of_environment(cls) -> Place:
        """What torchrun, or a job script, tells its ranks.

        Raises:
            ConfigError: A variable is missing or no number.
        """
        found = {}
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            text = os.environ.get(name, "")
            if not (text if name == "MASTER_ADDR" else text.isdigit()):
                raise ConfigError(
                    f"environment variable {name}: expected what torchrun sets for each rank, got '{text}'; "
                    "start ranks by --processes, --gpus, --slurm or torchrun"
                )
            found[name] = text
        rank, world = int(found["RANK"]), int(found["WORLD_SIZE"])
        if rank >= world:
            raise ConfigError(
                f"environment variable RANK: {rank} of {world} ranks; expected 0 to {world - 1}"
            )
        hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return cls(rank, world, found["MASTER_ADDR"], int(found["MASTER_PORT"]), hosts)


def meet(place: Place, timeout_s: float) -> dist.Store:
    """The store of this attempt, once all ranks are there.

    Args:
        timeout_s: How long to wait for a missing rank.
    Raises:
        ConfigError: The port is taken.
        RanksMissing: The same line on all ranks that came.
    """
    deadline = time.monotonic() + timeout_s
    store = _open_store(place, deadline, timeout_s)
    mark = _call_roll(store, place, deadline, timeout_s)
    return dist.PrefixStore(mark, store)


def _open_store(place: Place, deadline: float, timeout_s: float) -> dist.Store:
    where, timeout = f"{place.host}:{place.port}", timedelta(seconds=timeout_s)
    if place.hosts:
        # Asked first, since PyTorch's own answer is a page long.
        if is_taken(place.port):
            raise ConfigError(
                f"environment variable MASTER_PORT: {where} is taken by another program; "
                f"{free_port()} is free: set it for all ranks"
            )
        return dist.TCPStore(place.host, place.port, is_master=True, wait_for_workers=False, timeout=timeout)
    missing = RanksMissing(
        f"waited {timeout_s:g} s for rank 0 at {where}: nobody answers there; is rank 0 "
        "running, and may machines reach each other on this port?"
    )
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=1).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise missing from None
            time.sleep(_POLL_S)
    found: list[dist.Store] = []

    def connect() -> None:
        with suppress(RuntimeError):
            found.append(dist.TCPStore(place.host, place.port, is_master=False, timeout=timeout))

    # In a thread, since PyTorch waits for ever for the greeting of a program that is no store.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(max(1.0, deadline - time.monotonic()))
    if not found:
        raise RanksMissing(f"what answers at {where} is not rank 0 of a run; set MASTER_PORT")
    return found[0]


def _call_roll(store: dist.Store, place: Place, deadline: float, timeout_s: float) -> str:
    """The mark of this attempt, once all ranks have answered to it."""
    if place.rank != 0:
        return _answer(store, place, deadline, timeout_s)
    mark, greeted = f"attempt-{uuid.uuid4().hex}", dict.fromkeys(range(1, place.world), b"")
    missing = set(greeted)
    while missing and time.monotonic() < deadline:
        for rank in sorted(missing):
            if store.check([f"here/{rank}"]) and (ticket := store.get(f"here/{rank}")) != greeted[rank]:
                # May be of a rank that died in an earlier attempt; the one of this attempt overwrites it.
                greeted[rank] = ticket
                store.set(f"welcome/{ticket.decode()}", mark)
            if store.check([f"{mark}/in/{rank}"]):
                missing.discard(rank)
        time.sleep(_POLL_S)
    said = ""
    if missing:
        said = (
            f"waited {timeout_s:g} s for {named(sorted(missing))} of {place.world}; look at what they said, "
            "start all ranks, or raise parallel.timeout_s"
        )
    store.set(f"{mark}/go", json.dumps(said))
    if said:
        raise RanksMissing(said)
    return mark


def _answer(store: dist.Store, place: Place, deadline: float, timeout_s: float) -> str:
    ticket = uuid.uuid4().hex
    store.set(f"here/{place.rank}", ticket)
    try:
        left = timedelta(seconds=max(0.1, deadline + _GRACE_S - time.monotonic()))
        store.wait([f"welcome/{ticket}"], left)
        mark = store.get(f"welcome/{ticket}").decode()
        store.set(f"{mark}/in/{place.rank}", "")
        store.wait([f"{mark}/go"], timedelta(seconds=timeout_s + _GRACE_S))
        said = json.loads(store.get(f"{mark}/go"))
    except RuntimeError:
        raise RanksMissing(f"waited {timeout_s:g} s for rank 0, which went away") from None
    if said:
        raise RanksMissing(said)
    return mark


def named(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 1, 2, 5`, `ranks 8-15`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    said = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(said)}"
