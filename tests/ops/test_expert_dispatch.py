"""Each token through the experts chosen for it: every backend against the reference, and bad calls."""

import pytest
import torch

from allsight.ops import expert_dispatch


def inputs(n=7, c=5, out=4, e=3, k=2, dtype=torch.float64, zero=True):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    experts = torch.rand(n, e, generator=generator).argsort(1)[:, :k]
    gates = draw(n, k)
    if zero and n:
        gates[0, 0] = 0  # a choice without room
    tensors = dict(x=draw(n, c), weight=draw(e, out, c), bias=draw(e, out), gates=gates)
    return {name: t.requires_grad_() for name, t in tensors.items()} | {"experts": experts}


@pytest.mark.parametrize("shape", [{}, {"n": 0}, {"n": 1, "k": 1}, {"e": 5, "k": 5}, {"e": 1, "k": 1}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_cpu_agrees_with_reference(shape, dtype, tolerance):
    found = {}
    for backend in ("reference", "cpu"):
        given = inputs(**shape, dtype=dtype)
        y = expert_dispatch(**given, backend=backend)
        (y * torch.linspace(1, 2, y.numel(), dtype=dtype).view_as(y)).sum().backward()
        found[backend] = {"y": y.detach(), **{n: t.grad for n, t in given.items() if n != "experts"}}
    for name, expected in found["reference"].items():
        torch.testing.assert_close(found["cpu"][name], expected, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gates_may_be_wider_than_tokens(backend):
    given = inputs(dtype=torch.bfloat16)
    exact = {name: t.detach().double() if t.is_floating_point() else t for name, t in given.items()}
    wide = given["gates"].detach().float().requires_grad_()
    y = expert_dispatch(**{**given, "gates": wide}, backend=backend)
    y.sum().backward()
    assert (y.dtype, wide.grad.dtype, given["x"].grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    )
    expected = expert_dispatch(**exact, backend="reference")
    torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.05)


def test_gradient_is_right():
    given = inputs(n=3)
    names = ("x", "weight", "bias", "gates")

    def run(*tensors):
        return expert_dispatch(
            **dict(zip(names, tensors, strict=True)), experts=given["experts"], backend="cpu"
        )

    assert torch.autograd.gradcheck(run, [given[name] for name in names])


def test_operator_is_registered_properly():
    given = inputs(n=3, zero=False)
    call = [given[name] for name in ("x", "weight", "bias", "experts", "gates")]
    torch.library.opcheck(torch.ops.allsight.expert_dispatch.default, (*call, "cpu"))


def test_shapes_that_do_not_fit_are_named(without_shape_checks):
    given = inputs()
    with pytest.raises(ValueError, match=r"expert_dispatch: gates: expected \(7, 2\), got \(7, 1\)"):
        expert_dispatch(**{**given, "gates": given["gates"][:, :1]})
    with pytest.raises(ValueError, match="experts: 2 a token, but there are 1"):
        expert_dispatch(**{**given, "weight": given["weight"][:1], "bias": given["bias"][:1]})
    with pytest.raises(ValueError, match=r"weight: expected torch\.float64 like x, got torch\.float32"):
        expert_dispatch(**{**given, "weight": given["weight"].float()})
    with pytest.raises(ValueError, match="experts: expected on cpu like x, got meta"):
        expert_dispatch(**{**given, "experts": given["experts"].to("meta")})


@pytest.mark.parametrize("expert", [-1, 3, 7])
def test_an_expert_that_there_is_not_is_an_error(expert):
    given = inputs()
    given["experts"][0, 1] = expert
    with pytest.raises(IndexError, match=rf"experts: expected 0 to 2, got {expert}"):
        expert_dispatch(**given, backend="cpu")
