"""One process with all rows and two with half of them: the same losses and gradients."""

from pathlib import Path

import pytest
import torch
from rank_processes import run_ranks
from tiny_m3i import batch_of, model_of
from tiny_m3i_ranks import CASES, UNEVEN, uneven_batch


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(Path(__file__).with_name("m3i_rank.py"), folder)
    return torch.load(folder / "two.pt")


@pytest.mark.dist
def test_two_ranks_are_one_process_with_all_rows(two):
    for name, config in CASES.items():
        model = model_of(config)
        losses = model(batch_of(rows=8))[0]["losses"]
        sum(losses.values()).backward()
        torch.testing.assert_close(two[name]["losses"], torch.stack([*losses.values()]), rtol=0, atol=1e-9)
        same(two[name]["gradients"], model, name)


@pytest.mark.dist
def test_ranks_without_labels_and_captions_stay_in_step(two):
    model = model_of(UNEVEN)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for step in range(2):
        optimiser.zero_grad()
        sum(model(uneven_batch(step))[0]["losses"].values()).backward()
        optimiser.step()
        model.after_step(step)
    same(two["uneven"]["gradients"], model, "uneven")


@pytest.mark.dist
def test_slow_copies_are_equal_on_all_ranks(two):
    first, second = two["slow"]
    assert first.keys() == second.keys() and any(".net.projector" in name for name in first)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def same(gradients, model, what):
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                gradients[key], parameter.grad, rtol=1e-6, atol=1e-8, msg=f"{what} {key}"
            )
