"""Multi-scale deformable attention against the official numbers, a plain loop, and facts in closed form."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.backends import TOLERANCES, compiled_first, most_exact, relative, serving, usable_backends

from allsight.ops import ms_deform_attn

EVERY_BACKEND = pytest.mark.parametrize(("backend", "dtype"), most_exact("ms_deform_attn"))
SHAPES = ((5, 4), (1, 3), (1, 1))


def random_inputs(seed, batch, shapes, heads, channels, queries, points, dtype=torch.float64):
    """Value, locations (a third of them outside) and weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    pixels = sum(height * width for height, width in shapes)
    return (
        draw(batch, pixels, heads, channels),
        draw(batch, queries, heads, len(shapes), points, 2) * 0.5 + 0.5,
        draw(batch, queries, heads, len(shapes), points),
    )


def plain_loop(value, shapes, locations, weights):
    """One sample after the other, from the formula alone."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (height, width) in enumerate(shapes):
                    for p in range(points):
                        x, y = (float(v) for v in locations[b, q, m, level, p])
                        x, y = x * width - 0.5, y * height - 0.5
                        for j in (math.floor(y), math.floor(y) + 1):
                            for i in (math.floor(x), math.floor(x) + 1):
                                if 0 <= j < height and 0 <= i < width:
                                    weight = (1 - abs(x - i)) * (1 - abs(y - j))
                                    weight *= float(weights[b, q, m, level, p])
                                    out[b, q, m] += weight * value[b, start + j * width + i, m].double()
                    start += height * width
    return out.flatten(2)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    serving("ms_deform_attn", torch.float64, torch.float32, torch.float16, torch.bfloat16),
)
def test_core_matches_the_official_operator(parity, backend, dtype):
    """msdeformattn/core: output and all gradients; coordinates stay float32 where values have 16 bits."""
    about, tensors = parity("msdeformattn/core")
    forward, gradient = TOLERANCES[dtype]
    wide = torch.promote_types(dtype, torch.float32)
    for name in about["cases"]:
        value, locations, weights = (
            tensors[f"{name}.{key}"].to(kind).requires_grad_()
            for key, kind in (("value", dtype), ("sampling_locations", wide), ("attention_weights", dtype))
        )
        output = ms_deform_attn(value, tensors[f"{name}.spatial_shapes"], locations, weights, backend=backend)
        assert output.dtype == dtype
        assert relative(output, tensors[f"{name}.output"]) < forward, name
        (output * tensors[f"{name}.loss_weight"].to(dtype)).sum().backward()
        for key, tensor in (
            ("value", value),
            ("sampling_locations", locations),
            ("attention_weights", weights),
        ):
            assert relative(tensor.grad, tensors[f"{name}.grad_{key}"]) < gradient, (name, key)


@EVERY_BACKEND
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_small_call_matches_a_plain_loop(backend, dtype, data):
    number = lambda name, low, high: data.draw(st.integers(low, high), label=name)  # noqa: E731
    shapes = tuple((number("h", 1, 4), number("w", 1, 4)) for _ in range(number("levels", 1, 3)))
    heads, channels = number("heads", 1, 3), number("channels", 1, 5)
    queries, points = number("queries", 1, 3), number("points", 1, 3)
    inputs = random_inputs(
        number("seed", 0, 99), number("batch", 1, 2), shapes, heads, channels, queries, points, dtype
    )
    value, locations, weights = inputs
    torch.testing.assert_close(
        ms_deform_attn(value, shapes, locations, weights, backend=backend).double(),
        plain_loop(value, shapes, locations, weights),
        rtol=TOLERANCES[dtype][0],
        atol=TOLERANCES[dtype][0],
    )


@pytest.mark.parametrize(("backend", "dtype"), serving("ms_deform_attn", torch.float64))
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("shapes", [SHAPES, ((3, 7),)])
def test_gradients_are_those_of_finite_differences(backend, dtype, softmax, shapes):
    inputs = random_inputs(3, 2, shapes, 2, 3, 4, 2, dtype)
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: ms_deform_attn(
            value, shapes, locations, weights, softmax=softmax, backend=backend
        ),
        tuple(tensor.requires_grad_() for tensor in inputs),
        eps=1e-7,
        atol=1e-6,
        fast_mode=True,
    )


@EVERY_BACKEND
def test_a_point_at_the_center_of_a_pixel_reads_that_pixel(backend, dtype):
    height, width = 3, 4
    value = torch.arange(1.0, 13.0, dtype=dtype).view(1, 12, 1, 1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).to(dtype).view(1, 12, 1, 1, 1, 2)
    output = ms_deform_attn(
        value, ((height, width),), centers, torch.ones(1, 12, 1, 1, 1, dtype=dtype), backend=backend
    )
    torch.testing.assert_close(output, value.view(1, 12, 1), rtol=1e-6, atol=1e-6)


@EVERY_BACKEND
def test_samples_a_whole_pixel_outside_count_nothing_and_nearer_ones_fade(backend, dtype):
    ones = torch.ones(1, 1, 1, 1, dtype=dtype)
    for x, expected in [(-0.5, 0.0), (-0.25, 0.25), (0.5, 1.0), (1.25, 0.25), (1.5, 0.0), (-40.0, 0.0)]:
        location = torch.tensor([x, 0.5], dtype=dtype).view(1, 1, 1, 1, 1, 2)
        output = ms_deform_attn(ones, ((1, 1),), location, ones[None], backend=backend)
        assert output.item() == pytest.approx(expected)


@EVERY_BACKEND
def test_softmax_inside_runs_over_all_points_of_all_levels(backend, dtype):
    value, locations, logits = random_inputs(4, 2, SHAPES, 2, 3, 6, 3, dtype)
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    torch.testing.assert_close(
        ms_deform_attn(value, SHAPES, locations, logits, softmax=True, backend=backend),
        ms_deform_attn(value, SHAPES, locations, weights, backend=backend),
    )


@pytest.mark.parametrize("backend", usable_backends("ms_deform_attn"))
def test_each_image_of_a_batch_is_computed_alone(backend):
    value, locations, weights = random_inputs(5, 3, SHAPES, 2, 3, 11, 2, torch.float32)
    together = ms_deform_attn(value, SHAPES, locations, weights, backend=backend)
    for i in range(3):
        alone = ms_deform_attn(
            value[i : i + 1], SHAPES, locations[i : i + 1], weights[i : i + 1], backend=backend
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


@EVERY_BACKEND
@pytest.mark.parametrize(("batch", "queries", "points"), [(0, 4, 2), (2, 0, 2), (2, 4, 0)])
def test_empty_calls_give_empty_outputs_and_zero_gradients(backend, dtype, batch, queries, points):
    inputs = [t.requires_grad_() for t in random_inputs(0, batch, SHAPES, 2, 3, queries, points, dtype)]
    value, locations, weights = inputs
    output = ms_deform_attn(value, SHAPES, locations, weights, softmax=True, backend=backend)
    assert output.shape == (batch, queries, 6) and not output.any()
    output.sum().backward()
    assert all(tensor.grad.shape == tensor.shape and not tensor.grad.any() for tensor in inputs)


@EVERY_BACKEND
def test_memory_layout_of_the_inputs_does_not_matter(backend, dtype):
    inputs = random_inputs(6, 2, SHAPES, 2, 3, 5, 2, dtype)
    scattered = [t.permute(*range(t.ndim)[::-1]).contiguous().permute(*range(t.ndim)[::-1]) for t in inputs]
    assert not any(tensor.is_contiguous() for tensor in scattered)
    value, locations, weights = inputs
    expected = ms_deform_attn(value, SHAPES, locations, weights, backend=backend)
    value, locations, weights = scattered
    torch.testing.assert_close(ms_deform_attn(value, SHAPES, locations, weights, backend=backend), expected)


@pytest.mark.parametrize(("backend", "dtype"), serving("ms_deform_attn", torch.bfloat16, torch.float16))
def test_16_bit_inputs_are_computed_in_float32_and_rounded_once(backend, dtype):
    value, locations, weights = (t.to(dtype) for t in random_inputs(7, 2, SHAPES, 2, 4, 9, 3))
    exact = ms_deform_attn(value.double(), SHAPES, locations.double(), weights.double(), backend="reference")
    output = ms_deform_attn(value, SHAPES, locations, weights, backend=backend)
    assert output.dtype == dtype
    torch.testing.assert_close(output, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("backend", usable_backends("ms_deform_attn"))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, -3e38])
@pytest.mark.parametrize("axes", [[0], [1], [0, 1]])
def test_a_point_at_no_finite_place_contributes_nothing(backend, bad, axes):
    value, locations, weights = random_inputs(8, 1, SHAPES, 2, 8, 4, 2, torch.float32)
    locations[0, 1, 0, 0, 1, axes] = bad
    silenced = weights.clone()
    silenced[0, 1, 0, 0, 1] = 0
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = ms_deform_attn(value, SHAPES, locations, weights, backend=backend)
    elsewhere = locations.detach().nan_to_num(0, 0, 0).clamp(-1e3, 1e3)
    torch.testing.assert_close(output, ms_deform_attn(value, SHAPES, elsewhere, silenced, backend=backend))
    output.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    assert (locations.grad[0, 1, 0, 0, 1] == 0).all()
    assert weights.grad[0, 1, 0, 0, 1] == 0


@EVERY_BACKEND
@pytest.mark.parametrize("kind", [tuple, list, torch.tensor])
def test_sizes_may_be_pairs_or_a_tensor(backend, dtype, kind):
    value, locations, weights = random_inputs(9, 1, SHAPES, 2, 3, 4, 2, dtype)
    expected = ms_deform_attn(value, SHAPES, locations, weights, backend=backend)
    assert torch.equal(ms_deform_attn(value, kind(SHAPES), locations, weights, backend=backend), expected)


def test_shapes_are_known_on_the_meta_device():
    value, locations, weights = (t.to("meta") for t in random_inputs(0, 2, SHAPES, 2, 4, 7, 3))
    assert ms_deform_attn(value, SHAPES, locations, weights).shape == (2, 7, 8)


WRONG = [
    (
        dict(spatial_shapes=((5, 4), (1, 3))),
        r"value: expected 23 pixels .* in dimension 1, got 24",
    ),
    (dict(spatial_shapes=()), r"spatial_shapes: expected a \(height, width\) pair .*, got \(\)"),
    (dict(spatial_shapes=((5, 4), (1, 3), (1, 0))), r"spatial_shapes: expected .* integers >= 1"),
    (dict(spatial_shapes=((5, 4, 1), (1, 3), (1, 1))), r"spatial_shapes: expected a \(height, width\) pair"),
    (dict(spatial_shapes=torch.ones(6).int()), r"spatial_shapes: expected an integer tensor \[l, 2\]"),
    (dict(value=torch.zeros(2, 24, 6)), r"value: expected \[b, s, m, d\], got shape \(2, 24, 6\)"),
    (
        dict(spatial_shapes=((5, 4), (1, 4))),
        r"sampling_locations: expected shape \(2, 7, 3, 2, 2, 2\) .*, got \(2, 7, 3, 3, 2, 2\)",
    ),
    (
        dict(sampling_locations=torch.zeros(2, 7, 3, 3, 2)),
        r"sampling_locations: expected \[b, q, m, l, p, 2\], got shape \(2, 7, 3, 3, 2\)",
    ),
    (
        dict(sampling_locations=torch.zeros(2, 7, 3, 3, 2, 3)),
        r"sampling_locations: expected shape \(2, 7, 3, 3, 2, 2\)",
    ),
    (
        dict(attention_weights=torch.zeros(2, 7, 3, 6)),
        r"attention_weights: expected shape \(2, 7, 3, 3, 2\) \[b, q, m, l, p\], got \(2, 7, 3, 6\)",
    ),
    (
        dict(attention_weights=torch.zeros(2, 7, 3, 3, 2, device="meta")),
        r"attention_weights: expected on cpu like value, got meta",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_calls_that_do_not_fit_name_the_argument(changes, message, without_shape_checks):
    value, locations, weights = random_inputs(0, 2, SHAPES, 3, 2, 7, 2, torch.float32)
    call = dict(value=value, spatial_shapes=SHAPES, sampling_locations=locations, attention_weights=weights)
    with pytest.raises(ValueError, match=f"ms_deform_attn: {message}"):
        ms_deform_attn(**call | changes)


EXPORT = """
import torch
from allsight.ops import ms_deform_attn, status, use_backend

class Core(torch.nn.Module):
    def forward(self, fine, coarse, locations, weights):
        shapes = tuple((maps.shape[1], maps.shape[2]) for maps in (fine, coarse))
        value = torch.cat([maps.flatten(1, 2) for maps in (fine, coarse)], 1).unflatten(2, (2, 3))
        return ms_deform_attn(value, shapes, locations, weights, softmax=True)

def inputs(b, q, h, w):
    maps = torch.randn(b, h, w, 6), torch.randn(b, h + 1, 3, 6)
    return *maps, torch.rand(b, q, 2, 2, 4, 2), torch.randn(b, q, 2, 2, 4)

b, q, h, w = (torch.export.Dim(name, min=2, max=64) for name in "bqhw")
sizes = {0: b, 1: h, 2: w}, {0: b, 1: h + 1}, {0: b, 1: q}, {0: b, 1: q}
program = torch.export.export(Core(), inputs(2, 5, 7, 6), dynamic_shapes=sizes).module()
compiled = torch.compile(Core(), backend="eager", fullgraph=True, dynamic=True)
for others in (inputs(3, 9, 4, 8), inputs(2, 5, 7, 6)):
    torch.testing.assert_close(program(*others), Core()(*others))
    torch.testing.assert_close(compiled(*others), Core()(*others))
for missing in [n for n, s in status()["ms_deform_attn"].backends.items() if not s.usable][:1]:
    try:
        with use_backend(missing):
            compiled(*others)
    except Exception as error:
        assert "exception" in str(error) or missing in str(error), error
    else:
        raise SystemExit("a compiled model ignored use_backend")
"""


@pytest.mark.parametrize("backend", compiled_first("ms_deform_attn"))
def test_graph_can_be_compiled_whole_and_exported_for_any_batch_and_size(backend):
    # In a process of its own: the shape checks of the test run do not understand symbolic sizes.
    environment = {**os.environ, "ALLSIGHT_BACKEND": backend}
    result = subprocess.run([sys.executable, "-c", EXPORT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
