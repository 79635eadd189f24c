"""DCNv3 against the official numbers, a plain loop, and facts known in closed form."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.backends import TOLERANCES, compiled_first, most_exact, relative, serving, usable_backends
from ops.dcn_cases import official_options

from allsight.ops import dcnv3

EVERY_BACKEND = pytest.mark.parametrize(("backend", "dtype"), most_exact("dcnv3"))


def random_inputs(seed, batch, height, width, groups, channels, points, output, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        draw(batch, height, width, groups * channels),
        draw(batch, *output, groups * points * 2) * 2,
        draw(batch, *output, groups * points),
    )


def plain_loop(value, offset, mask, groups, kernel, stride, padding, dilation, scale, remove_center=False):
    """One sample after the other, from the formula alone."""
    batch, height, width, channels = value.shape
    _, rows, columns, _ = offset.shape
    size = channels // groups
    points = [(c, r) for c in range(kernel[1]) for r in range(kernel[0])]
    if remove_center:
        points.remove((kernel[1] // 2, kernel[0] // 2))
    out = torch.zeros(batch, rows, columns, channels, dtype=torch.float64)
    reach = [dilation[i] * (kernel[i] - 1) // 2 for i in (0, 1)]
    for b in range(batch):
        for oy in range(rows):
            for ox in range(columns):
                for g in range(groups):
                    for p, (column, row) in enumerate(points):
                        n = g * len(points) + p
                        dx, dy = (float(v) for v in offset[b, oy, ox, 2 * n : 2 * n + 2])
                        x = ox * stride[1] - padding[1] + reach[1]
                        y = oy * stride[0] - padding[0] + reach[0]
                        x += scale * (column * dilation[1] - reach[1] + dx)
                        y += scale * (row * dilation[0] - reach[0] + dy)
                        for j in (math.floor(y), math.floor(y) + 1):
                            for i in (math.floor(x), math.floor(x) + 1):
                                if 0 <= j < height and 0 <= i < width:
                                    weight = (1 - abs(x - i)) * (1 - abs(y - j)) * float(mask[b, oy, ox, n])
                                    cut = slice(g * size, (g + 1) * size)
                                    out[b, oy, ox, cut] += weight * value[b, j, i, cut].double()
    return out


@pytest.mark.parametrize(
    ("backend", "dtype"), serving("dcnv3", torch.float64, torch.float32, torch.float16, torch.bfloat16)
)
def test_core_matches_the_official_operator(parity, backend, dtype):
    """dcnv3/core: output and all gradients; coordinates stay float32 where values have 16 bits."""
    about, tensors = parity("dcnv3/core")
    forward, gradient = TOLERANCES[dtype]
    wide = torch.promote_types(dtype, torch.float32)
    for name, case in about["cases"].items():
        inputs = {
            key: tensors[f"{name}.{key}"].to(kind).requires_grad_()
            for key, kind in (("input", dtype), ("offset", wide), ("mask", dtype))
        }
        output = dcnv3(*inputs.values(), **official_options(case), backend=backend)
        assert output.dtype == dtype
        assert relative(output, tensors[f"{name}.output"]) < forward, name
        (output * tensors[f"{name}.loss_weight"].to(dtype)).sum().backward()
        for key, tensor in inputs.items():
            if f"{name}.grad_{key}" in tensors:
                assert relative(tensor.grad, tensors[f"{name}.grad_{key}"]) < gradient, (name, key)


PATTERNS = [
    dict(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), scale=1.0),
    dict(kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), scale=2.0),
    dict(kernel=(2, 4), stride=(1, 2), padding=(0, 2), dilation=(2, 1), scale=0.5),
    dict(kernel=(5, 1), stride=(1, 1), padding=(3, 0), dilation=(1, 3), scale=1.5),
    dict(kernel=(3, 3), stride=(1, 1), padding=(2, 1), dilation=(2, 1), scale=1.0, remove_center=True),
    dict(kernel=(1, 1), stride=(3, 1), padding=(0, 1), dilation=(1, 1), scale=1.0),
]


def options_of(pattern):
    pairs = {"kernel": "kernel_size", "scale": "offset_scale"}
    return {pairs.get(key, key): setting for key, setting in pattern.items()}


def output_size(height, width, kernel, stride, padding, dilation, **_):
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
    )


@EVERY_BACKEND
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_matches_a_plain_loop(backend, dtype, pattern):
    points = pattern["kernel"][0] * pattern["kernel"][1] - int(pattern.get("remove_center", False))
    inputs = random_inputs(0, 2, 6, 5, 2, 3, points, output_size(6, 5, **pattern), dtype)
    expected = plain_loop(*inputs, 2, **pattern)
    output = dcnv3(*inputs, groups=2, **options_of(pattern), backend=backend)
    assert relative(output, expected) < TOLERANCES[dtype][0]


@EVERY_BACKEND
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_small_call_matches_a_plain_loop(backend, dtype, data):
    number = lambda name, low, high: data.draw(st.integers(low, high), label=name)  # noqa: E731
    pattern = {
        "kernel": (number("kh", 1, 3), number("kw", 1, 3)),
        "stride": (number("sh", 1, 2), number("sw", 1, 2)),
        "padding": (number("ph", 0, 2), number("pw", 0, 2)),
        "dilation": (number("dh", 1, 2), number("dw", 1, 2)),
        "scale": data.draw(st.sampled_from([0.5, 1.0, 2.0])),
    }
    least = [
        max(1, pattern["dilation"][i] * (pattern["kernel"][i] - 1) + 1 - 2 * pattern["padding"][i])
        for i in (0, 1)
    ]
    height, width = number("h", least[0], least[0] + 2), number("w", least[1], least[1] + 2)
    groups, channels = number("groups", 1, 2), number("channels", 1, 3)
    points = pattern["kernel"][0] * pattern["kernel"][1]
    output = output_size(height, width, **pattern)
    inputs = random_inputs(number("seed", 0, 99), 1, height, width, groups, channels, points, output, dtype)
    torch.testing.assert_close(
        dcnv3(*inputs, groups=groups, **options_of(pattern), backend=backend).double(),
        plain_loop(*inputs, groups, **pattern),
        rtol=TOLERANCES[dtype][0],
        atol=TOLERANCES[dtype][0],
    )


@pytest.mark.parametrize(("backend", "dtype"), serving("dcnv3", torch.float64))
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("softmax", [False, True])
def test_gradients_are_those_of_finite_differences(backend, dtype, pattern, softmax):
    points = pattern["kernel"][0] * pattern["kernel"][1] - int(pattern.get("remove_center", False))
    inputs = random_inputs(3, 1, 4, 5, 2, 2, points, output_size(4, 5, **pattern), dtype)
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(
        lambda *tensors: dcnv3(*tensors, groups=2, softmax=softmax, **options_of(pattern), backend=backend),
        inputs,
        eps=1e-7,
        atol=1e-6,
        fast_mode=True,
    )


def zero_offsets(dtype, height=6, width=7):
    value, offset, mask = random_inputs(1, 1, height, width, 2, 3, 9, (height, width), dtype)
    return value, torch.zeros_like(offset), torch.full_like(mask, 1 / 9)


def averaged(value, dilation):
    channels = value.shape[-1]
    kernel = torch.full((channels, 1, 3, 3), 1 / 9, dtype=value.dtype)
    maps = F.conv2d(value.permute(0, 3, 1, 2), kernel, padding=dilation, dilation=dilation, groups=channels)
    return maps.permute(0, 2, 3, 1)


@EVERY_BACKEND
@pytest.mark.parametrize("scale", [1, 2])
def test_zero_offsets_and_equal_weights_average_a_window_as_wide_as_the_scale(backend, dtype, scale):
    value, offset, mask = zero_offsets(dtype)
    output = dcnv3(value, offset, mask, groups=2, offset_scale=scale, backend=backend)
    torch.testing.assert_close(output, averaged(value, scale))


@EVERY_BACKEND
@pytest.mark.parametrize(
    ("point", "shift_x", "shift_y"), [(4, 0, 0), (1, -1, 0), (3, 0, -1), (5, 0, 1), (8, 1, 1)]
)
def test_points_are_numbered_column_by_column(backend, dtype, point, shift_x, shift_y):
    value, offset, mask = zero_offsets(dtype)
    one_hot = F.one_hot(torch.tensor(point), 9).to(mask).repeat(2).expand_as(mask)
    padded = F.pad(value, (0, 0, 1, 1, 1, 1))
    expected = padded[:, 1 + shift_y : 7 + shift_y, 1 + shift_x : 8 + shift_x]
    torch.testing.assert_close(dcnv3(value, offset, one_hot, groups=2, backend=backend), expected)


@EVERY_BACKEND
def test_samples_a_whole_pixel_outside_count_nothing_and_nearer_ones_fade(backend, dtype):
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    for x, expected in [(-1.0, 0.0), (-0.75, 0.25), (0.0, 1.0), (0.75, 0.25), (1.0, 0.0), (-40.0, 0.0)]:
        offset = torch.tensor([x, 0.0], dtype=dtype).view(1, 1, 1, 2)
        output = dcnv3(one, offset, one, groups=1, kernel_size=1, padding=0, backend=backend)
        assert output.item() == pytest.approx(expected)


@EVERY_BACKEND
def test_softmax_inside_equals_softmax_before(backend, dtype):
    value, offset, logits = random_inputs(4, 2, 5, 4, 2, 3, 9, (5, 4), dtype)
    weights = logits.view(2, 5, 4, 2, 9).softmax(-1).flatten(3)
    torch.testing.assert_close(
        dcnv3(value, offset, logits, groups=2, softmax=True, backend=backend),
        dcnv3(value, offset, weights, groups=2, backend=backend),
    )


@pytest.mark.parametrize("backend", usable_backends("dcnv3"))
def test_each_image_of_a_batch_is_computed_alone(backend):
    inputs = random_inputs(5, 3, 5, 7, 2, 3, 9, (5, 7), dtype=torch.float32)
    together = dcnv3(*inputs, groups=2, backend=backend)
    for i in range(3):
        alone = dcnv3(*(tensor[i : i + 1] for tensor in inputs), groups=2, backend=backend)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


@EVERY_BACKEND
def test_empty_batch_gives_empty_output_and_gradients(backend, dtype):
    inputs = [t[:0].requires_grad_() for t in random_inputs(0, 1, 5, 7, 2, 3, 9, (5, 7), dtype)]
    output = dcnv3(*inputs, groups=2, softmax=True, backend=backend)
    assert output.shape == (0, 5, 7, 6)
    output.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in inputs)


@EVERY_BACKEND
@pytest.mark.parametrize("size", [(0, 6), (4, 0)])
def test_a_map_without_pixels_is_refused_however_it_is_padded(backend, dtype, size):
    value = torch.randn(1, *size, 8, dtype=dtype)
    rows, columns = size[0] + 2, size[1] + 2
    offset, mask = (
        torch.zeros(1, rows, columns, 36, dtype=dtype),
        torch.zeros(1, rows, columns, 18, dtype=dtype),
    )
    with pytest.raises(ValueError, match="value: expected a map of one pixel at least"):
        dcnv3(value, offset, mask, groups=2, padding=2, backend=backend)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_functional_transforms_take_the_reference():
    """Kernels have no functional gradient, and `jvp` of them would be a silent zero."""
    value, offset, mask = random_inputs(5, 1, 4, 4, 1, 4, 9, (4, 4), dtype=torch.float64)

    def total(value, backend="auto"):
        return dcnv3(value, offset, mask, groups=1, backend=backend).square().sum()

    own = value.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(own), own)
    torch.testing.assert_close(torch.func.grad(total)(value), expected)
    each = torch.func.vmap(torch.func.grad(total))(torch.stack([value, 2 * value]))
    torch.testing.assert_close(each, torch.stack([expected, 2 * expected]))
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(total, (value,), (value,))
    with pytest.raises(ValueError, match=r"torch\.func differentiates PyTorch's own operators alone"):
        torch.func.grad(lambda value: total(value, "cpu"))(value)


@EVERY_BACKEND
def test_memory_layout_of_the_inputs_does_not_matter(backend, dtype):
    inputs = random_inputs(6, 2, 5, 4, 2, 3, 9, (5, 4), dtype)
    scattered = [tensor.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in scattered)
    torch.testing.assert_close(
        dcnv3(*scattered, groups=2, backend=backend), dcnv3(*inputs, groups=2, backend=backend)
    )


@pytest.mark.parametrize(("backend", "dtype"), serving("dcnv3", torch.bfloat16, torch.float16))
def test_16_bit_inputs_are_computed_in_float32_and_rounded_once(backend, dtype):
    inputs = [tensor.to(dtype) for tensor in random_inputs(7, 2, 9, 8, 2, 4, 9, (9, 8))]
    exact = dcnv3(*(tensor.double() for tensor in inputs), groups=2, backend="reference")
    output = dcnv3(*inputs, groups=2, backend=backend)
    assert output.dtype == dtype
    torch.testing.assert_close(output, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("backend", usable_backends("dcnv3"))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, -3e38])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_point_at_no_finite_place_contributes_nothing(backend, bad, scale):
    value, offset, mask = random_inputs(8, 1, 4, 4, 1, 2, 9, (4, 4), dtype=torch.float32)
    offset[0, 1, 2, 6:8] = bad
    silenced = mask.clone()
    silenced[0, 1, 2, 3] = 0
    value, offset = value.requires_grad_(), offset.requires_grad_()
    options = dict(groups=1, offset_scale=scale, backend=backend)
    output = dcnv3(value, offset, mask, **options)
    elsewhere = offset.detach().nan_to_num(0, 0, 0).clamp(-1e3, 1e3)
    torch.testing.assert_close(output, dcnv3(value, elsewhere, silenced, **options))
    output.sum().backward()
    assert value.grad.isfinite().all()
    assert offset.grad.isfinite().all()
    assert (offset.grad[0, 1, 2, 6:8] == 0).all()


def test_shapes_are_known_on_the_meta_device():
    inputs = (tensor.to("meta") for tensor in random_inputs(0, 2, 9, 12, 2, 4, 9, (5, 6)))
    assert dcnv3(*inputs, groups=2, stride=2).shape == (2, 5, 6, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(groups=4), r"value: expected channels divisible by groups=4, got 6"),
        (dict(groups=0), r"groups: expected an integer >= 1, got 0"),
        (dict(groups=1), r"offset: expected shape \(1, 5, 7, 18\).*got \(1, 5, 7, 36\)"),
        (dict(groups=2, stride=2), r"offset: expected shape \(1, 3, 4, 36\)"),
        (
            dict(groups=2, kernel_size=(0, 3)),
            r"kernel_size: expected an integer >= 1 or a .* pair, got \(0, 3\)",
        ),
        (dict(groups=2, padding=-1), r"padding: expected an integer >= 0"),
        (dict(groups=2, dilation=9), r"value: a map of 5x7 .* is smaller than kernel_size"),
        (
            dict(groups=2, kernel_size=(3, 5), remove_center=True),
            r"remove_center: needs a square odd kernel_size",
        ),
    ],
)
def test_calls_that_do_not_fit_name_the_argument(options, message):
    inputs = random_inputs(0, 1, 5, 7, 2, 3, 9, (5, 7))
    with pytest.raises(ValueError, match=message):
        dcnv3(*inputs, **options)


def test_a_mask_of_the_wrong_size_is_named():
    value, offset, mask = random_inputs(0, 1, 5, 7, 2, 3, 9, (5, 7))
    with pytest.raises(ValueError, match=r"mask: expected shape \(1, 5, 7, 18\) .*got \(1, 5, 7, 17\)"):
        dcnv3(value, offset, mask[..., 1:], groups=2)


EXPORT = """
import torch
from allsight.ops import dcnv3, status, use_backend

class Core(torch.nn.Module):
    def forward(self, value, offset, mask):
        return dcnv3(value, offset, mask, groups=2, softmax=True)

def inputs(b, h, w):
    return torch.randn(b, h, w, 6), torch.randn(b, h, w, 36), torch.randn(b, h, w, 18)

sizes = {i: torch.export.Dim(name, min=2, max=64) for i, name in enumerate(("b", "h", "w"))}
program = torch.export.export(Core(), inputs(2, 5, 7), dynamic_shapes=(sizes, sizes, sizes)).module()
compiled = torch.compile(Core(), backend="eager", fullgraph=True, dynamic=True)
for others in (inputs(3, 9, 4), inputs(2, 5, 7)):
    torch.testing.assert_close(program(*others), Core()(*others))
    torch.testing.assert_close(compiled(*others), Core()(*others))
for missing in [n for n, s in status()["dcnv3"].backends.items() if not s.usable][:1]:
    try:
        with use_backend(missing):
            compiled(*others)
    except Exception as error:
        assert "exception" in str(error) or missing in str(error), error
    else:
        raise SystemExit("a compiled model ignored use_backend")
"""


@pytest.mark.parametrize("backend", compiled_first("dcnv3"))
def test_graph_can_be_compiled_whole_and_exported_for_any_batch_and_size(backend):
    # In a process of its own: the shape checks of the test run do not understand symbolic sizes.
    environment = {**os.environ, "ALLSIGHT_BACKEND": backend}
    result = subprocess.run([sys.executable, "-c", EXPORT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
