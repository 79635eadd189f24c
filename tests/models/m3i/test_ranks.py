"""One process with all rows and two with half of them: the same losses and gradients."""

from pathlib import Path

import pytest
import torch
from rank_processes import run_ranks
from tiny_m3i import batch_of, model_of
from tiny_m3i_ranks import CASES


@pytest.mark.dist
def test_two_ranks_are_one_process_with_all_rows(tmp_path):
    run_ranks(Path(__file__).with_name("m3i_rank.py"), tmp_path)
    two = torch.load(tmp_path / "two.pt")
    for name, config in CASES.items():
        model = model_of(config)
        losses = model(batch_of(rows=8))[0]["losses"]
        sum(losses.values()).backward()
        torch.testing.assert_close(two[name]["losses"], torch.stack([*losses.values()]), rtol=0, atol=1e-9)
        gradients = two[name]["gradients"]
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(
                    gradients[key], parameter.grad, rtol=1e-6, atol=1e-8, msg=f"{name} {key}"
                )
