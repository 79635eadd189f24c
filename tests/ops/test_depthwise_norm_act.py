"""Depth-wise convolution, layer norm and activation in one: against the three steps in PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from native_cases import draw
from ops.backends import relative, usable_backends

from allsight.ops import depthwise_norm_act, status, use_backend

ACTS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu, "none": lambda x: x}
EVERY_BACKEND = pytest.mark.parametrize("backend", usable_backends("depthwise_norm_act"))
COMPILED = pytest.mark.skipif(
    "cpu" not in usable_backends("depthwise_norm_act"), reason=str(status()["depthwise_norm_act"])
)


def inputs(channels, kernel, height=5, width=7, dtype=torch.float64, batch=2, seed=0):
    vectors = [draw(seed + i, channels, dtype=dtype) for i in range(3)]
    x = draw(seed + 3, batch, height, width, channels, dtype=dtype)
    return x, draw(seed + 4, channels, 1, kernel, kernel, dtype=dtype), *vectors


def three_steps(x, weight, bias, norm_weight, norm_bias, act="gelu", eps=1e-6):
    channels = x.shape[3]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[3] // 2, groups=channels)
    return ACTS[act](F.layer_norm(y.permute(0, 2, 3, 1), (channels,), norm_weight, norm_bias, eps))


@EVERY_BACKEND
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("channels", "kernel"), [(5, 1), (16, 3), (20, 5), (6, 7), (64, 3)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (2, 3), (3, 14), (4, 28)])
def test_equals_the_three_steps(backend, act, channels, kernel, height, width):
    tensors = inputs(channels, kernel, height, width)
    expected = three_steps(*tensors, act=act)
    most = float(expected.abs().max())
    exact = depthwise_norm_act(*tensors, act=act, backend=backend)
    assert float((exact - expected).abs().max()) < 1e-12 * most
    single = depthwise_norm_act(*(t.float() for t in tensors), act=act, backend=backend)
    assert single.dtype == torch.float32
    assert float((single - expected).abs().max()) < 5e-6 * most


@EVERY_BACKEND
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_those_of_the_three_steps(backend, act, with_bias):
    given = [t.requires_grad_() for t in inputs(6, 3)]
    if not with_bias:
        given[2] = None
    grad = draw(9, *given[0].shape, dtype=torch.float64)
    wanted = [t for t in given if t is not None]
    expected = torch.autograd.grad(three_steps(*given, act=act), wanted, grad)
    actual = torch.autograd.grad(depthwise_norm_act(*given, act=act, backend=backend), wanted, grad)
    for a, e in zip(actual, expected, strict=True):
        assert relative(a, e) < 1e-12


@EVERY_BACKEND
def test_gradcheck(backend):
    tensors = [t.requires_grad_() for t in inputs(4, 3, 2, 3, batch=1)]
    assert torch.autograd.gradcheck(lambda *t: depthwise_norm_act(*t, backend=backend), tensors)


@EVERY_BACKEND
@pytest.mark.parametrize(("act", "limit"), [("gelu", 2e-7), ("silu", 2e-7)])
def test_activations_are_exact_to_the_last_digits(backend, act, limit):
    """A map of zeros leaves the shift of the norm, so that every number can be looked at."""
    numbers = torch.linspace(-8, 8, 4001)
    count = len(numbers)
    for dtype, most in ((torch.float32, limit), (torch.float64, 1e-14)):
        zeros = torch.zeros(1, 1, 1, count, dtype=dtype), torch.zeros(count, 1, 1, 1, dtype=dtype)
        vectors = torch.ones(count, dtype=dtype), numbers.to(dtype)
        output = depthwise_norm_act(*zeros, None, *vectors, act=act, backend=backend).flatten()
        # The reference is PyTorch, whose own gelu in float32 is 2.8e-7 off where it runs with AVX-512.
        exact = ACTS[act](numbers.to(dtype) if backend == "reference" else numbers.double()).double()
        gap = (output.double() - exact).abs()
        assert float((gap / numbers.double().abs().clamp_min(1)).max()) < most


@EVERY_BACKEND
def test_16_bits_are_computed_in_float32(backend):
    tensors = inputs(16, 3, dtype=torch.bfloat16)
    output = depthwise_norm_act(*tensors, backend=backend)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, three_steps(*(t.double() for t in tensors)).bfloat16()) or (
        relative(output, three_steps(*(t.double() for t in tensors))) < 3e-3
    )


@EVERY_BACKEND
def test_neither_gaps_nor_the_order_of_weights_change_anything(backend):
    x, weight, *vectors = inputs(16, 5, dtype=torch.float32)
    expected = depthwise_norm_act(x, weight, *vectors, backend=backend)
    gaps = torch.stack([x, x], -1)[..., 0]
    taps_first = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    odd = weight.transpose(2, 3).contiguous().transpose(2, 3)
    across = x.transpose(1, 2).contiguous().transpose(1, 2)
    for tensors in ((gaps, weight), (x, taps_first), (x, odd), (across, weight)):
        torch.testing.assert_close(
            depthwise_norm_act(*tensors, *vectors, backend=backend), expected, rtol=0, atol=2e-6
        )


@EVERY_BACKEND
def test_what_is_not_finite_stays_where_it_is_seen(backend):
    x, *rest = inputs(16, 3, 6, 9, dtype=torch.float32, batch=1)
    clean = depthwise_norm_act(x, *rest, backend=backend)
    x = x.clone()
    x[0, 1, 2, 3] = float("nan")
    output = depthwise_norm_act(x, *rest, backend=backend)
    touched = torch.zeros(6, 9, dtype=torch.bool)
    touched[0:3, 1:4] = True
    assert output[0][touched].isnan().all()
    torch.testing.assert_close(output[0][~touched], clean[0][~touched])


@EVERY_BACKEND
def test_an_empty_batch_gives_an_empty_map(backend):
    x, *rest = inputs(8, 3)
    assert depthwise_norm_act(x[:0], *rest, backend=backend).shape == (0, 5, 7, 8)


@COMPILED
def test_registered_operator_passes_opcheck():
    tensors = [t.requires_grad_() for t in inputs(8, 3, dtype=torch.float32)]
    torch.library.opcheck(torch.ops.allsight.depthwise_norm_act.default, (*tensors, 1e-6, "gelu", "cpu"))
    tensors[2] = torch.empty(0, requires_grad=True)
    torch.library.opcheck(torch.ops.allsight.depthwise_norm_act.default, (*tensors, 1e-6, "silu", "cpu"))


@COMPILED
def test_second_derivatives_are_refused_in_words():
    tensors = [t.requires_grad_() for t in inputs(8, 3)]
    output = depthwise_norm_act(*tensors, backend="cpu")
    (grad,) = torch.autograd.grad(output.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


@COMPILED
def test_a_wish_for_another_backend_holds_here_too():
    tensors = inputs(8, 3)
    with use_backend("reference"):
        assert torch.equal(depthwise_norm_act(*tensors), depthwise_norm_act(*tensors, backend="reference"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (5, 7, 8)}, r"x: expected \[b, h, w, c\]"),
        ({0: (1, 0, 7, 8)}, r"x: expected \[b, h, w, c\] with h, w, c >= 1"),
        ({1: (8, 1, 2, 2)}, r"weight: expected shape \(8, 1, k, k\) with odd k, got \(8, 1, 2, 2\)"),
        ({1: (8, 1, 3, 5)}, r"weight: expected shape \(8, 1, k, k\)"),
        ({1: (4, 1, 3, 3)}, r"weight: expected shape \(8, 1, k, k\)"),
        ({2: (4,)}, r"bias: expected shape \(8,\), one value per channel of x, got \(4,\)"),
        ({3: (8, 1)}, r"norm_weight: expected shape \(8,\)"),
        ({4: (9,)}, r"norm_bias: expected shape \(8,\)"),
    ],
)
def test_calls_that_do_not_fit_name_operator_and_argument(without_shape_checks, change, message):
    tensors = list(inputs(8, 3))
    for place, shape in change.items():
        tensors[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=f"^depthwise_norm_act: {message}"):
        depthwise_norm_act(*tensors)


def test_unknown_activation_is_refused(without_shape_checks):
    refusal = r"^depthwise_norm_act: act: expected one of none, relu, silu, gelu, got 'tanh'"
    with pytest.raises(ValueError, match=refusal):
        depthwise_norm_act(*inputs(8, 3), act="tanh")
