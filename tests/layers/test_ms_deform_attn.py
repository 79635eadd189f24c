"""The MSDeformAttn layer against official numbers, its start, its masks and its precision."""

import math

import pytest
import torch

from allsight.layers import MSDeformAttn
from allsight.ops import ms_deform_attn

SHAPES = ((6, 5), (3, 2))


def relative(actual, expected):
    return float((actual - expected).detach().norm() / expected.norm())


def moving(layer, seed=0):
    """Random weights everywhere, so that offsets and weights are not at their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3
    return layer


def random_inputs(seed=0, batch=2, queries=7, channels=8, numbers=2, dtype=torch.float64):
    """Query, reference points and value."""
    generator = torch.Generator().manual_seed(seed)
    pixels = sum(height * width for height, width in SHAPES)
    return (
        torch.randn(batch, queries, channels, generator=generator, dtype=dtype),
        torch.rand(batch, queries, len(SHAPES), numbers, generator=generator, dtype=dtype),
        torch.randn(batch, pixels, channels, generator=generator, dtype=dtype),
    )


@pytest.mark.parametrize(
    ("dtype", "forward", "gradient"), [(torch.float64, 1e-12, 1e-11), (torch.float32, 1e-5, 1e-4)]
)
def test_layer_matches_the_official_module(parity, dtype, forward, gradient):
    """msdeformattn/module: output and the gradients of inputs and parameters."""
    about, tensors = parity("msdeformattn/module")
    for name, case in about["cases"].items():
        sizes = {k.removeprefix("n_"): v for k, v in case["constructor"].items() if k != "d_model"}
        layer = MSDeformAttn(case["constructor"]["d_model"], **sizes).to(dtype)
        layer.load_state_dict({key: tensors[f"{name}.state_dict.{key}"] for key in case["keys"]})
        inputs = {
            key: tensors[f"{name}.{key}"].to(dtype).requires_grad_()
            for key in ("query", "reference_points", "input_flatten")
        }
        output = layer(
            *inputs.values(),
            tensors[f"{name}.input_spatial_shapes"],
            tensors.get(f"{name}.input_padding_mask"),
        )
        assert relative(output, tensors[f"{name}.output"].to(dtype)) < forward, name
        (output * tensors[f"{name}.loss_weight"].to(dtype)).sum().backward()
        for key, tensor in inputs.items():
            assert relative(tensor.grad, tensors[f"{name}.grad_{key}"].to(dtype)) < gradient, (name, key)
        for key, parameter in layer.named_parameters():
            expected = tensors[f"{name}.grad.{key}"].to(dtype)
            assert relative(parameter.grad, expected) < gradient, (name, key)


def test_heads_start_in_directions_of_their_own_and_points_at_growing_distance():
    layer = MSDeformAttn(16, levels=3, heads=8, points=4)
    bias = layer.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    diagonal = pytest.approx([-1.0, 1.0])
    assert bias[0, 2, 3].tolist() == pytest.approx([4.0, 0.0])
    assert bias[2, 0, 1].tolist() == pytest.approx([0.0, 2.0], abs=1e-6)
    assert bias[3, 1, 0].tolist() == diagonal
    assert torch.equal(bias[:, :1].expand_as(bias), bias)
    # To the last digit: angles, sines and norms in float32, as in the official code.
    angle = torch.tensor(5, dtype=torch.float32) * (2.0 * math.pi / 8)
    direction = torch.stack([angle.cos(), angle.sin()])
    assert torch.equal(bias[5, 0, 2], direction / direction.abs().max() * 3)
    for name in ("sampling_offsets.weight", "attention_weights.weight", "attention_weights.bias"):
        assert not layer.get_parameter(name).any(), name
    assert not layer.value_proj.bias.any()
    assert layer.value_proj.weight.abs().max() <= math.sqrt(6 / 32)


def test_start_does_not_depend_on_the_default_type():
    expected = MSDeformAttn(18, heads=6).sampling_offsets.bias
    torch.set_default_dtype(torch.float64)
    try:
        bias = MSDeformAttn(18, heads=6).sampling_offsets.bias
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(bias, expected.double())


def test_offsets_count_in_pixels_around_a_point_and_in_parts_of_a_box():
    layer = moving(MSDeformAttn(8, levels=2, heads=2, points=3).double())
    query, _, value = random_inputs()
    offsets = layer.sampling_offsets(query).view(2, 7, 2, 2, 3, 2)
    weights = layer.attention_weights(query).view(2, 7, 2, 2, 3)
    features = layer.value_proj(value).view(2, 36, 2, 4)

    def expected(locations):
        return layer.output_proj(ms_deform_attn(features, SHAPES, locations, weights, softmax=True))

    middle = torch.full((2, 7, 2, 2), 0.5, dtype=torch.float64)
    sizes = torch.tensor([[5, 6], [2, 3]], dtype=torch.float64).view(2, 1, 2)
    torch.testing.assert_close(layer(query, middle, value, SHAPES), expected(0.5 + offsets / sizes))
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.2], dtype=torch.float64).expand(2, 7, 2, 4)
    parts = 0.5 + offsets / 3 * boxes[0, 0, 0, 2:] / 2
    torch.testing.assert_close(layer(query, boxes, value, SHAPES), expected(parts))


def test_padded_values_count_as_zero():
    layer = moving(MSDeformAttn(8, levels=2, heads=2).double())
    query, points, value = random_inputs()
    padding = torch.zeros(2, 36, dtype=torch.bool)
    padding[0, 20:30], padding[1, 33:] = True, True
    output = layer(query, points, value, SHAPES, padding)
    other = torch.where(padding[..., None], math.nan, value)
    torch.testing.assert_close(layer(query, points, other, SHAPES, padding), output)
    assert not torch.allclose(layer(query, points, value, SHAPES), output)


@pytest.mark.parametrize("numbers", [2, 4])
def test_places_stay_float32_under_autocast(numbers):
    layer = moving(MSDeformAttn(8, levels=2, heads=2))
    query, points, value = random_inputs(numbers=numbers, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.attention_weights(query).dtype == torch.bfloat16
        places = layer._locations(query, points, SHAPES)
        assert places.dtype == torch.float32
        output = layer(query, points, value, SHAPES)
    torch.testing.assert_close(places, layer._locations(query, points, SHAPES), rtol=0, atol=0)
    torch.testing.assert_close(output.float(), layer(query, points, value, SHAPES), rtol=0.1, atol=0.1)


def test_places_are_float32_in_a_model_of_16_bits():
    layer = moving(MSDeformAttn(8, levels=2, heads=2)).bfloat16()
    query, points, value = random_inputs(dtype=torch.bfloat16)
    assert layer._locations(query, points, SHAPES).dtype == torch.float32
    assert layer(query, points, value, SHAPES).dtype == torch.bfloat16


def test_gradients_reach_inputs_and_every_parameter():
    layer = moving(MSDeformAttn(8, levels=2, heads=2).double())
    inputs = [tensor.requires_grad_() for tensor in random_inputs(numbers=4)]
    layer(*inputs, SHAPES).square().sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(tensor.grad.any() for tensor in inputs)


def test_shapes_are_known_on_the_meta_device():
    with torch.device("meta"):
        layer = MSDeformAttn(8, levels=2, heads=2)
    inputs = (tensor.to("meta") for tensor in random_inputs(dtype=torch.float32))
    assert layer(*inputs, SHAPES).shape == (2, 7, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=3), "heads: expected a divisor of channels=8, got 3"),
        (dict(heads=2, levels=0), "levels: expected an integer >= 1, got 0"),
        (dict(heads=2, points=0), "points: expected an integer >= 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=f"MSDeformAttn: {message}"):
        MSDeformAttn(8, **options)


@pytest.mark.parametrize("shape", [(2, 7, 2, 3), (2, 7, 3, 2)])
def test_reference_points_that_do_not_fit_are_named(shape):
    layer = MSDeformAttn(8, levels=2, heads=2).double()
    query, _, value = random_inputs()
    with pytest.raises(ValueError, match=r"reference_points: expected \[b, q, 2, 2 or 4\], got \(2, 7, "):
        layer(query, torch.zeros(shape, dtype=torch.float64), value, SHAPES)
