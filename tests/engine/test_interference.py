"""Interference of tasks: known answers, and nothing of the model is changed."""

import copy
import math

import pytest
import torch

from allsight.engine.interference import measure_interference


def setting(other):
    """A linear model with dropout, a task, and another one made from it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(2, 8, 6).double(), torch.randn(2, 8, 3).double()
    z = torch.randn(2, 8, 3).double()
    own = [lambda n=n: (model(x[n]) - y[n]).square().mean() for n in range(2)]
    kinds = {
        "same": own,
        "opposite": [lambda n=n: -(model(x[n]) - y[n]).square().mean() for n in range(2)],
        "other": [lambda n=n: (model(x[n]) - z[n]).square().mean() for n in range(2)],
    }
    return model, {"own": own[:1], other: kinds[other][:1]}


@pytest.mark.parametrize(("other", "expected"), [("same", 1.0), ("opposite", -1.0)])
def test_known_answers(other, expected):
    model, losses = setting(other)
    found = measure_interference(model, losses, step=1e-6)
    assert found.whole[0][0] == pytest.approx(1.0, abs=1e-12)
    assert found.whole[0][1] == pytest.approx(expected, abs=1e-4)
    assert all(table[0][1] == pytest.approx(expected) for table in found.parts.values())
    assert set(found.parts) == {"0", "2"}


def test_to_first_order_it_is_the_cosine():
    model, losses = setting("other")
    found = measure_interference(model, losses, step=1e-7, part_of=lambda name: "all")
    assert found.whole[0][1] == pytest.approx(found.parts["all"][0][1], abs=1e-4)
    assert abs(found.whole[0][1]) < 0.99


def test_the_model_is_left_as_it_was():
    model, losses = setting("other")
    model.train()
    losses["own"][0]().backward()
    before, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    measure_interference(model, losses, step=0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_a_part_that_a_task_does_not_touch_has_no_cosine():
    model, losses = setting("other")
    losses["first"] = [lambda: model[0](torch.ones(1, 6).double()).square().sum()]
    table = measure_interference(model, losses).parts["2"]
    assert math.isnan(table[0][2])


def test_no_batches_is_an_error():
    model, losses = setting("other")
    with pytest.raises(ValueError, match="no batches for other"):
        measure_interference(model, {**losses, "other": []})
