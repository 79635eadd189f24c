"""Batch norm over ranks: two processes with unequal parts of a batch equal one with all of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from norm_rank import batch, outcome, start

from allsight.layers import BatchNormLast, SyncBatchNormLast


def test_alone_it_is_plain_batch_norm():
    expected = outcome(start(BatchNormLast), *batch())
    actual = outcome(start(SyncBatchNormLast), *batch())
    torch.testing.assert_close(actual, expected)


@pytest.mark.dist
def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(Path(__file__).parent / "norm_rank.py"), str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected = outcome(start(BatchNormLast), *batch())
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), expected[name])
    for name in ("weight", "bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], expected[name])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for part in parts:
            torch.testing.assert_close(part[name], expected[name])
