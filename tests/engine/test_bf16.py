"""Why bf16 needs no scaling of the loss: its numbers reach as low as those of float32."""

import pytest
import torch

from allsight.engine.precision import Precision


def small_gradient(dtype=None):
    """The gradient of a weight behind a factor of 1e-9, through autocast where `dtype` is given."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 1)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = second(first(torch.randn(8, 16)))
    (output.float().mean() * 1e-9).backward()
    return first.weight.grad


def test_small_gradients_survive_in_bf16_and_are_lost_in_fp16():
    exact = small_gradient()
    torch.testing.assert_close(
        small_gradient(torch.bfloat16), exact, rtol=0.05, atol=float(exact.abs().max()) / 50
    )
    assert not small_gradient(torch.float16).any()


def test_weights_gradients_and_results_are_float32_around_a_bf16_pass():
    model, precision = torch.nn.Linear(4, 2), Precision("bf16", torch.device("cpu"))
    precision.prepare(model)
    with precision.forward():
        output = model(torch.randn(3, 4))
    assert output.dtype == torch.bfloat16
    assert precision.widen({"x": output})["x"].dtype == torch.float32
    precision.widen({"x": output})["x"].sum().backward()
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_step_smaller_than_bf16_can_hold_still_moves_the_weights(kind):
    model, precision = torch.nn.Linear(4, 1, bias=False), Precision(kind, torch.device("cpu"))
    torch.nn.init.ones_(model.weight)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-5)
    for _ in range(10):
        optimiser.zero_grad()
        with precision.forward():
            loss = precision.widen({"x": model(torch.ones(1, 4))})["x"].sum()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 4), 1 - 1e-4), rtol=1e-6, atol=0)
