"""Batch norm over ranks: two processes with unequal parts of a batch equal one with all of it."""

from pathlib import Path

import pytest
import torch
from norm_rank import batch, outcome, start
from rank_processes import run_ranks

from allsight.layers import BatchNormLast, SyncBatchNormLast


def test_alone_it_is_plain_batch_norm():
    expected = outcome(start(BatchNormLast), *batch())
    actual = outcome(start(SyncBatchNormLast), *batch())
    torch.testing.assert_close(actual, expected)


@pytest.mark.dist
def test_two_ranks_equal_one(tmp_path):
    run_ranks(Path(__file__).with_name("norm_rank.py"), tmp_path, timeout_s=120)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected = outcome(start(BatchNormLast), *batch())
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), expected[name])
    for name in ("weight", "bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], expected[name])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for part in parts:
            torch.testing.assert_close(part[name], expected[name])
