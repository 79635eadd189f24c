"""Multi-scale deformable attention by Triton against the float64 reference and the official numbers."""

import math
from dataclasses import dataclass

import pytest
import torch

from allsight.ops import _triton
from allsight.ops.ms_deform_attn import triton as kernels
from allsight.ops.ms_deform_attn.reference import ms_deform_attn_reference

FLOAT32, FLOAT64 = 1e-6, 1e-12


@dataclass(frozen=True)
class Case:
    shapes: tuple[tuple[int, int], ...] = ((3, 5), (2, 1))
    batch: int = 1
    queries: int = 5
    heads: int = 1
    channels: int = 4
    points: int = 2
    softmax: bool = False

    def inputs(self, device, dtype=torch.float32, seed=0):
        """Value, locations, weights and the gradient of the output; a third of the points lies outside."""
        generator = torch.Generator().manual_seed(seed)
        levels = self.batch, self.queries, self.heads, len(self.shapes), self.points
        positions = sum(height * width for height, width in self.shapes)

        def draw(function, *shape):
            return function(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        locations = draw(torch.rand, *levels, 2) * 1.5 - 0.25
        return (
            draw(torch.randn, self.batch, positions, self.heads, self.channels),
            locations.to(torch.promote_types(dtype, torch.float32)),
            draw(torch.randn, *levels),
            draw(torch.randn, self.batch, self.queries, self.heads * self.channels),
        )


def expected(case, value, locations, weights, grad):
    """Output and gradients in float64."""
    inputs = [tensor.detach().cpu().double().requires_grad_() for tensor in (value, locations, weights)]
    output = ms_deform_attn_reference(*inputs, case.shapes, case.softmax)
    return output, *torch.autograd.grad(output, inputs, grad.cpu().double())


def actual(case, value, locations, weights, grad):
    output = kernels.forward(value, locations, weights, case.shapes, case.softmax)
    return output, *kernels.backward(grad, value, locations, weights, case.shapes, case.softmax)


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=2, heads=2, softmax=True),
        Case(channels=1, points=3),
        Case(channels=32, points=4, softmax=True),
        Case(channels=48, shapes=((1, 1), (1, 7), (6, 1))),
        Case(channels=3, heads=3, batch=3, shapes=((7, 5),), points=1),
        Case(queries=70, shapes=((4, 4),), points=1, softmax=True),
        Case(shapes=((4, 3),), points=7),
    ],
    ids=str,
)
def test_output_and_gradients_match_the_reference(case, device, close):
    inputs = case.inputs(device)
    close.relative(actual(case, *inputs), expected(case, *inputs), FLOAT32)


@pytest.mark.parametrize("softmax", [False, True])
def test_float64_is_computed_in_float64(softmax, device, close):
    case = Case(softmax=softmax)
    inputs = case.inputs(device, torch.float64)
    close.relative(actual(case, *inputs), expected(case, *inputs), FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_values_are_computed_in_float32_and_rounded_once(dtype, device, close):
    case = Case(channels=8, softmax=True)
    inputs = case.inputs(device, dtype)
    assert inputs[1].dtype == torch.float32
    output, grad_value, grad_locations, grad_weights = actual(case, *inputs)
    exact = expected(case, *inputs)
    close.relative([output] * 3 + [grad_locations], [output] * 3 + [exact[2]], FLOAT32)
    # The gradient of locations is float32 and was compared above.
    stand_in = exact[2].to(device, dtype)
    close.rounded((output, grad_value, stand_in, grad_weights), exact, dtype)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_point_at_no_finite_place_contributes_nothing(bad, device, close):
    case = Case()
    value, locations, weights, grad = case.inputs(device)
    locations[0, 2, 0, 1, 1, 0] = bad
    result = actual(case, value, locations, weights, grad)
    assert all(tensor.isfinite().all() for tensor in result)
    assert (result[2][0, 2, 0, 1, 1] == 0).all()
    assert result[3][0, 2, 0, 1, 1] == 0
    locations[0, 2, 0, 1, 1] = -9.0
    close.relative(result, expected(case, value, locations, weights, grad), FLOAT32)


def test_memory_layout_does_not_matter(device, close):
    case = Case(batch=2, queries=3)
    inputs = case.inputs(device)
    scattered = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in inputs]
    close.same_bits(actual(case, *scattered), actual(case, *inputs))


@pytest.mark.parametrize("size", [dict(batch=0), dict(queries=0), dict(points=0), dict(channels=0)])
def test_empty_tensors(size, device):
    case = Case(**size)
    value, locations, weights, grad = case.inputs(device)
    output, *gradients = actual(case, value, locations, weights, grad)
    assert output.shape == grad.shape
    assert [tensor.shape for tensor in gradients] == [value.shape, locations.shape, weights.shape]
    assert not any(tensor.count_nonzero() for tensor in (output, *gradients))


def test_each_image_of_a_batch_is_computed_alone(device, close, deterministic):
    case, alone = Case(batch=2), Case()
    inputs = case.inputs(device)
    inputs[3][1] *= 1e4
    together = actual(case, *inputs)
    for i in range(2):
        one = slice(i, i + 1)
        close.same_bits(actual(alone, *(t[one] for t in inputs)), [t[one] for t in together])


def test_deterministic_backward_does_not_depend_on_the_order_of_programs(
    device, close, in_reverse, deterministic, monkeypatch
):
    monkeypatch.setattr(_triton, "_MOST_ROWS", 4)
    case = Case(queries=16, shapes=((2, 2),))
    inputs = case.inputs(device)
    forwards = actual(case, *inputs)
    torch.use_deterministic_algorithms(False)
    default = actual(case, *inputs)
    close.relative(forwards, default, 1e-6)
    in_reverse()
    default_in_reverse = actual(case, *inputs)
    torch.use_deterministic_algorithms(True)
    close.same_bits(actual(case, *inputs), forwards)
    if device == "cpu":
        # Else the test would prove nothing.
        assert not torch.equal(default[1], default_in_reverse[1])


def test_official_numbers(parity, device, close):
    about, tensors = parity("msdeformattn/core")
    keys = ("value", "sampling_locations", "attention_weights")
    for name, case in about["cases"].items():
        shapes = tuple((height, width) for height, width in case["spatial_shapes_h_w"])
        value, locations, weights = (tensors[f"{name}.{key}"].to(device) for key in keys)
        grad = tensors[f"{name}.loss_weight"].to(device)
        output = kernels.forward(value, locations, weights, shapes, False)
        gradients = kernels.backward(grad, value, locations, weights, shapes, False)
        stored = [tensors[f"{name}.output"], *(tensors[f"{name}.grad_{key}"] for key in keys)]
        close.relative((output, *gradients), stored, 1e-11)
