"""Expert dispatch by Triton against the float64 reference."""

import math
from dataclasses import dataclass

import pytest
import torch

from allsight.ops.expert_dispatch import triton as kernels
from allsight.ops.expert_dispatch.reference import expert_dispatch_reference

FLOAT32, FLOAT64 = 1e-6, 1e-12
# Two roundings, since gate times gradient is rounded before the product that gives the gradients of weights;
# the interpreter cuts digits off where a GPU rounds.
SIXTEEN_BITS = {torch.bfloat16: 2**-7, torch.float16: 2**-10}


@dataclass(frozen=True)
class Case:
    tokens: int = 7
    channels: int = 5
    out: int = 4
    experts: int = 3
    k: int = 2

    def inputs(self, device, dtype=torch.float32, gate_dtype=None, seed=0):
        """Gradient of the output, tokens, weights, biases, choices, gates; some choices found no room."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        experts = torch.rand(self.tokens, self.experts, generator=generator).argsort(1)[:, : self.k]
        gates = draw(self.tokens, self.k).to(gate_dtype or dtype)
        gates[::3, :1] = 0
        return (
            draw(self.tokens, self.out),
            draw(self.tokens, self.channels),
            draw(self.experts, self.out, self.channels),
            draw(self.experts, self.out),
            experts.to(device),
            gates,
        )


def expected(grad, *call):
    """Output and gradients of tokens, weights, biases and gates in float64."""
    x, weight, bias, gates = (call[i].detach().cpu().double().requires_grad_() for i in (0, 1, 2, 4))
    output = expert_dispatch_reference(x, weight, bias, call[3].cpu(), gates)
    return output.detach(), *torch.autograd.grad(output, (x, weight, bias, gates), grad.cpu().double())


def actual(grad, *call):
    x, weight, bias, experts, gates = kernels.backward(grad, *call)
    assert experts.dtype == torch.int64 and not experts.any()
    return kernels.forward(*call), x, weight, bias, gates


@pytest.fixture(scope="module")
def close(close):
    class Named(type(close)):
        NAMES = ("output", "grad of x", "grad of weight", "grad of bias", "grad of gates")

    return Named()


CASES = [
    Case(),
    Case(tokens=1, k=1),
    Case(experts=1, k=1, channels=1, out=1),
    Case(tokens=5, experts=5, k=5),
    Case(tokens=70, channels=40, out=70, experts=2, k=1),
    Case(tokens=40, channels=70, out=33, experts=2),
    Case(tokens=3, experts=9, k=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_the_reference(case, device, close):
    inputs = case.inputs(device)
    close.relative(actual(*inputs), expected(*inputs), FLOAT32)


def test_float64_is_computed_in_float64(device, close):
    inputs = Case().inputs(device, torch.float64)
    close.relative(actual(*inputs), expected(*inputs), FLOAT64)


@pytest.mark.parametrize("gate_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_16_bit_tensors_are_computed_in_float32(dtype, gate_dtype, device, close):
    inputs = Case(tokens=20, channels=9, out=12).inputs(device, dtype, gate_dtype)
    found, exact = actual(*inputs), expected(*inputs)
    assert [t.dtype for t in found] == [dtype] * 4 + [gate_dtype or dtype]
    # Rounded once at the end: no element is further off than half a step, but for the gradients of weights.
    for place in (0, 1, 3, 4):
        torch.testing.assert_close(
            found[place].cpu(),
            exact[place].to(found[place].dtype),
            rtol=torch.finfo(found[place].dtype).eps,
            atol=1e-6 * float(exact[place].abs().max()),
        )
    close.relative(found, exact, SIXTEEN_BITS[dtype])


@pytest.mark.parametrize("chosen", [[[0], [0], [0], [0]], [[2], [0], [2], [2]]])
def test_an_expert_that_nobody_chose_gets_no_gradient(chosen, device, close):
    grad, x, weight, bias, _, gates = Case(tokens=4, k=1).inputs(device)
    inputs = grad, x, weight, bias, torch.tensor(chosen, device=device), torch.ones_like(gates)
    found = actual(*inputs)
    close.relative(found, expected(*inputs), FLOAT32)
    assert not found[2][1].any() and not found[3][1].any()


def test_a_choice_without_weight_is_not_computed(device):
    _, x, weight, bias, experts, gates = Case(tokens=4, k=1).inputs(device)
    weight[1], bias[1] = math.nan, math.nan
    experts[:] = torch.tensor([0, 1, 2, 1], device=device)[:, None]
    gates[:] = torch.tensor([1.0, 0, 2, 0], device=device)[:, None]
    output = kernels.forward(x, weight, bias, experts, gates)
    assert output.isfinite().all() and not output[1::2].any() and output[::2].all()


@pytest.mark.parametrize(
    "size", [dict(tokens=0), dict(channels=0), dict(out=0), dict(k=0), dict(experts=0, k=0)], ids=str
)
def test_empty_tensors(size, device, close):
    inputs = Case(**size).inputs(device)
    close.relative(actual(*inputs), expected(*inputs), FLOAT32)


def test_memory_layout_does_not_matter(device, close):
    inputs = Case().inputs(device)
    scattered = [
        t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim))) for t in inputs
    ]
    close.same_bits(actual(*scattered), actual(*inputs), close.NAMES)
    grad = inputs[0].mean().expand_as(inputs[0])
    close.relative(actual(grad, *inputs[1:]), expected(grad, *inputs[1:]), FLOAT32)


def test_bits_do_not_depend_on_the_order_of_programs(device, close, in_reverse):
    inputs = Case(tokens=40, channels=20, out=20, k=3).inputs(device)
    forwards = actual(*inputs)
    in_reverse()
    close.same_bits(actual(*inputs), forwards, close.NAMES)
