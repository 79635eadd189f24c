"""Residual addition with the layer norm after it or before it: against the single steps in PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from native_cases import draw
from ops.backends import relative, usable_backends

from allsight.ops import add_layer_norm, layer_norm_add, status

EVERY_BACKEND = pytest.mark.parametrize("backend", usable_backends("add_layer_norm"))
BOTH = pytest.mark.parametrize("operator", [add_layer_norm, layer_norm_add])
COMPILED = pytest.mark.skipif(
    "cpu" not in usable_backends("add_layer_norm"), reason=str(status()["add_layer_norm"])
)


def inputs(*shape, dtype=torch.float64, with_scale=True):
    vectors = [draw(i, shape[-1], dtype=dtype) for i in range(3)]
    return (
        draw(3, *shape, dtype=dtype),
        draw(4, *shape, dtype=dtype),
        *vectors[:2],
        vectors[2] if with_scale else None,
    )


def steps(operator, residual, branch, weight, bias, scale):
    factor = 1 if scale is None else scale
    if operator is layer_norm_add:
        return (residual + factor * F.layer_norm(branch, branch.shape[-1:], weight, bias, 1e-6),)
    total = residual + factor * branch
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, 1e-6)


def outputs(operator, *tensors, backend):
    *tensors, scale = tensors
    found = operator(*tensors, scale=scale, backend=backend)
    return found if isinstance(found, tuple) else (found,)


@BOTH
@EVERY_BACKEND
@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 8), (2, 3, 5, 16), (2, 7, 37), (1, 3, 3, 160), (2, 2, 2, 4)])
def test_equals_the_single_steps(operator, backend, with_scale, shape):
    tensors = inputs(*shape, with_scale=with_scale)
    expected = steps(operator, *tensors)
    exact = outputs(operator, *tensors, backend=backend)
    single = outputs(operator, *(t if t is None else t.float() for t in tensors), backend=backend)
    for e, a, s in zip(expected, exact, single, strict=True):
        assert a.shape == s.shape == e.shape
        assert relative(a, e) < 1e-14
        assert s.dtype == torch.float32
        assert relative(s, e) < 1e-6


@BOTH
@EVERY_BACKEND
@pytest.mark.parametrize("with_scale", [True, False])
def test_gradients_are_those_of_the_single_steps(operator, backend, with_scale):
    tensors = [t if t is None else t.requires_grad_() for t in inputs(2, 3, 6, with_scale=with_scale)]
    wanted = [t for t in tensors if t is not None]

    def grads(found):
        return torch.autograd.grad(
            found, wanted, [draw(i, *o.shape, dtype=o.dtype) for i, o in enumerate(found)]
        )

    expected = grads(steps(operator, *tensors))
    for a, e in zip(grads(outputs(operator, *tensors, backend=backend)), expected, strict=True):
        assert relative(a, e) < 1e-12


@EVERY_BACKEND
def test_one_of_the_two_results_may_be_left_alone(backend):
    for used in (0, 1):
        tensors = [t.requires_grad_() for t in inputs(2, 3, 6)]
        expected = torch.autograd.grad(steps(add_layer_norm, *tensors)[used].square().sum(), tensors[:2])
        found = outputs(add_layer_norm, *tensors, backend=backend)[used]
        for a, e in zip(torch.autograd.grad(found.square().sum(), tensors[:2]), expected, strict=True):
            assert relative(a, e) < 1e-12


@BOTH
@EVERY_BACKEND
def test_gradcheck(operator, backend):
    tensors = [t.requires_grad_() for t in inputs(3, 5)]
    assert torch.autograd.gradcheck(lambda *t: outputs(operator, *t, backend=backend), tensors)


@BOTH
@EVERY_BACKEND
def test_results_have_the_type_of_the_residual(operator, backend):
    residual, branch, *vectors = inputs(3, 16, dtype=torch.float32)
    for output in outputs(operator, residual, branch.bfloat16(), *vectors, backend=backend):
        assert output.dtype == torch.float32
    expected = steps(operator, residual.bfloat16().double(), branch.double(), *(v.double() for v in vectors))
    found = outputs(operator, residual.bfloat16(), branch, *vectors, backend=backend)
    for output, e in zip(found, expected, strict=True):
        assert output.dtype == torch.bfloat16
        assert relative(output, e) < 1e-2


@BOTH
@EVERY_BACKEND
def test_gaps_change_nothing_and_nothing_gives_nothing(operator, backend):
    residual, branch, *vectors = inputs(2, 3, 4, 8)
    expected = outputs(operator, residual, branch, *vectors, backend=backend)
    spread = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (residual, branch))
    for a, e in zip(outputs(operator, *spread, *vectors, backend=backend), expected, strict=True):
        assert relative(a, e) < 1e-14
    for output in outputs(operator, residual[:0], branch[:0], *vectors, backend=backend):
        assert output.shape == (0, 3, 4, 8)


@COMPILED
@pytest.mark.parametrize("name", ["add_layer_norm", "layer_norm_add"])
def test_registered_operators_pass_opcheck(name):
    residual, branch, weight, bias, scale = (t.requires_grad_() for t in inputs(2, 3, 8, dtype=torch.float32))
    operator = getattr(torch.ops.allsight, name).default
    torch.library.opcheck(operator, (residual, branch, scale, weight, bias, 1e-6, "cpu"))
    nothing = torch.empty(0, requires_grad=True)
    torch.library.opcheck(operator, (residual, branch, nothing, weight, bias, 1e-6, "cpu"))


@BOTH
@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (1, (2, 3, 7), r"branch: expected shape \(2, 3, 8\) like residual, got \(2, 3, 7\)"),
        (2, (7,), r"norm_weight: expected shape \(8,\), one value per channel of residual, got \(7,\)"),
        (3, (1, 8), r"norm_bias: expected shape \(8,\)"),
        (4, (2,), r"scale: expected shape \(8,\)"),
    ],
)
def test_calls_that_do_not_fit_name_operator_and_argument(
    without_shape_checks, operator, place, shape, message
):
    tensors = list(inputs(2, 3, 8))
    tensors[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=f"^{operator.__name__}: {message}"):
        outputs(operator, *tensors, backend="auto")
