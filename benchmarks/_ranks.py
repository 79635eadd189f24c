"""Starts a script as several ranks on this machine, one thread each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import torch.distributed as dist


def run_ranks(script: str, *words: str, ranks: int) -> None:
    """Run `python SCRIPT WORDS` once a rank, in the environment that torchrun gives, and wait.

    Raises:
        RuntimeError: A rank failed.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    several = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)} if ranks > 1 else {}
    processes = []
    for rank in range(ranks):
        own = {**several, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        processes.append(subprocess.Popen([sys.executable, script, *words], env={**common, **own}))
    try:
        if any([process.wait() for process in processes]):
            raise RuntimeError(f"a rank of {ranks} failed; what it said is above")
    finally:
        for process in processes:
            process.kill()


def is_first() -> bool:
    """Whether this process writes results."""
    return os.environ.get("RANK", "0") == "0"


def leave() -> None:
    """End together."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
