"""Experts split over ranks give what one process gives that holds them all."""

from pathlib import Path

import pytest
import torch
from expert_rank import CASES, layer, outcome
from rank_processes import run_ranks

WORLDS = (2, pytest.param(4, marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world} ranks")
def ranks(request, tmp_path_factory):
    """What each rank found."""
    out = tmp_path_factory.mktemp("experts")
    run_ranks(Path(__file__).with_name("expert_rank.py"), out, ranks=request.param)
    return [torch.load(out / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.dist
@pytest.mark.parametrize("name", CASES)
def test_ranks_that_share_experts_equal_one_process(ranks, name):
    whole = layer()
    expected = [outcome(whole, rank, **CASES[name]) for rank in range(len(ranks))]
    for rank, (found, one) in enumerate(zip(ranks, expected, strict=True)):
        one |= {"weight": whole.weight.detach()}
        one |= {f"{n} gradient": p.grad for n, p in whole.named_parameters()}
        for copies in (1, 2) if len(ranks) > 2 else (1,):
            assert found[copies, name].keys() == one.keys()
            for key, tensor in one.items():
                torch.testing.assert_close(
                    found[copies, name][key], tensor, rtol=1e-12, atol=1e-12, msg=f"rank {rank}: {key}"
                )


@pytest.mark.dist
def test_what_cannot_be_split_is_refused(ranks):
    for found in ranks:
        assert "split over ranks cannot be shared by runs" in found["runs"]
        assert found["uneven"].startswith("7 experts cannot be shared evenly by ")
