"""Starts a script as several ranks that can join a group, and waits for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(script: Path, *arguments: str | Path, ranks: int = 2, timeout_s: float = 300) -> None:
    """Run `script` once a rank, one thread each; the test fails with what they said unless all end well."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        texts = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(texts)[-4000:]


def save_half(outcome: Callable[..., Any], rows: int, out: Path) -> None:
    """In one of two ranks: save what `outcome(rows, share, group_ranks=2)` makes of its half of the rows."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    own = slice(rank * rows // 2, (rank + 1) * rows // 2)
    torch.save(outcome(own, 0.5, group_ranks=2), out / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
