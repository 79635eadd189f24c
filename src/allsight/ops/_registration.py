"""Kernels as PyTorch operators: one name in `torch.ops.allsight`, whatever computes it.

An operator is registered once, with its shape rule (for meta tensors, `torch.compile` and `torch.export`) and
its gradient; the name of the backend travels as an argument. Under autocast tensors stay in the types in
which they come: kernels take 16-bit features beside float32 places, and compute in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from allsight.ops import _native, _triton
from allsight.ops._dispatch import Implementation, Operator

_LIBRARY = torch.library.Library("allsight", "FRAGMENT")
_PLAIN = (Tensor, torch.nn.Parameter)


def register(
    name: str,
    *,
    tensors: Sequence[str],
    options: str,
    pack: Callable[..., Sequence[Any]],
    unpack: Callable[..., Sequence[Any]],
    output: Callable[..., Sequence[Any]],
    outputs: int = 1,
    reference: Callable[..., Any],
    indices: Sequence[str] = (),
    backends: Sequence[Literal["cpu", "triton"]] = ("cpu",),
) -> Operator:
    """Define `allsight::NAME` and `allsight::NAME_backward`, and the table of those who compute them.

    A backend is the module of that name in `ops/NAME`, with `forward(*tensors, *rest)` and
    `backward(*grads, *tensors, *rest)`, one gradient per output.

    Args:
        name: Name of the operator and of its folder.
        tensors: Names of its tensors. Outputs have the type of the first, each gradient that of its tensor.
            An optional one that is not given comes as `nothing(like)`.
        options: Schema of all that follows the tensors; empty if nothing does.
        pack: From `rest` to these options.
        unpack: The reverse.
        output: Shape of every output, from tensors and rest.
        outputs: How many there are; several come as a tuple.
        reference: The plain PyTorch function `reference(*tensors, *rest)`, which serves every valid call and
            has PyTorch's own gradient.
        indices: Those of the tensors that hold whole numbers, whatever type the others have.
        backends: Those who come before it, the preferred one first.

    Returns:
        The operator; all its implementations are called with `(*tensors, *rest)`.
    """
    schema_parts = [*(f"Tensor {tensor}" for tensor in tensors), options, "str backend"]
    arguments = ", ".join(part for part in schema_parts if part)
    gradients = ", ".join("Tensor" for _ in tensors)
    results = "Tensor" if outputs == 1 else "(" + ", ".join("Tensor" for _ in range(outputs)) + ")"
    given = "Tensor grad" if outputs == 1 else ", ".join(f"Tensor grad{i}" for i in range(outputs))
    count = len(tensors)
    modules: dict[str, ModuleType] = {}

    def kernels(backend: str) -> ModuleType:
        if backend not in modules:
            modules[backend] = import_module(f"allsight.ops.{name}.{backend}")
        return modules[backend]

    def forward(*call: Any) -> Any:
        return kernels(call[-1]).forward(*call[:count], *unpack(*call[count:-1]))

    def backward(*call: Any) -> tuple[Tensor, ...]:
        end = outputs + count
        return kernels(call[-1]).backward(*call[:end], *unpack(*call[end:-1]))

    def fake_forward(*call: Any) -> Any:
        shape = output(*call[:count], *unpack(*call[count:-1]))
        empty = tuple(call[0].new_empty(shape) for _ in range(outputs))
        return empty if outputs > 1 else empty[0]

    def fake_backward(*call: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in call[outputs : outputs + count])

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.options = inputs[count:]

    def differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = backward_operator(*grads, *ctx.saved_tensors, *ctx.options)
        return *_wanted(ctx, found, 0), *(None for _ in ctx.options)

    for suffix, schema, run, fake in (
        ("", f"({arguments}) -> {results}", forward, fake_forward),
        ("_backward", f"({given}, {arguments}) -> ({gradients})", backward, fake_backward),
    ):
        _LIBRARY.define(f"{name}{suffix}{schema}")
        _LIBRARY.impl(f"{name}{suffix}", run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"allsight::{name}{suffix}", fake, lib=_LIBRARY)
    backward_operator = getattr(torch.ops.allsight, f"{name}_backward").default
    torch.library.register_autograd(f"allsight::{name}", differentiate, setup_context=keep, lib=_LIBRARY)
    operator = getattr(torch.ops.allsight, name).default

    def on(backend: str) -> Callable[..., Any]:
        def run(*call: Any) -> Any:
            given, rest = call[:count], call[count:]
            if is_watched(given):
                return operator(*given, *pack(*rest), backend)
            if torch.is_grad_enabled():
                return _Direct.apply(kernels(backend), rest, *given)
            return kernels(backend).forward(*given, *rest)

        return run

    def refused_by_cpu(*call: Any) -> str | None:
        return _is_transformed() or (None if call[0].is_cpu else f"{tensors[0]} is on {call[0].device}")

    def refused_by_triton(*call: Any) -> str | None:
        if (reason := _is_transformed()) is not None:
            return reason
        given = zip(tensors, call, strict=False)
        return _triton.refuses(*(tensor for tensor_name, tensor in given if tensor_name not in indices))

    rows = {
        "cpu": Implementation("cpu", on("cpu"), _native.about(), _native.unusable, refused_by_cpu),
        "triton": Implementation(
            "triton", on("triton"), _triton.about(), _triton.unusable, refused_by_triton
        ),
    }
    last = Implementation(
        "reference",
        reference,
        about="pure PyTorch, every device and floating-point type",
        unusable=lambda: None,
        refuses=lambda *call: None,
    )
    return Operator(name, (*(rows[backend] for backend in backends), last))


def _is_transformed() -> str | None:
    """Why kernels cannot serve a call inside of `torch.func.grad`, `jacrev`, `jvp` and the like, if it is in
    one: their gradients are no such functions, and what `jvp` would make of them is a silent zero."""
    if torch.compiler.is_compiling():
        return None
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    stack, kinds = functorch.get_interpreter_stack(), functorch.TransformType
    if stack is None:
        return None
    if any(interpreter.key() in (kinds.Grad, kinds.Jvp) for interpreter in stack):
        return "torch.func differentiates PyTorch's own operators alone"
    return None


def nothing(like: Tensor) -> Tensor:
    """What stands for an optional tensor that is not given: one without values."""
    return like.new_empty(0)


def is_watched(tensors: Sequence[Tensor]) -> bool:
    """Whether somebody looks at operators: a tracer, a mode, a profiler, a tensor that is more than one.

    If nobody does, the kernel is called at once. PyTorch's way to an operator written in Python costs more
    than the kernel itself on small maps: about 15 us forward, and as much again with a gradient.
    """
    for tensor in tensors:  # quicker than any() of a generator
        if type(tensor) not in _PLAIN:
            return True
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or torch.autograd._profiler_enabled()
        or torch._C._is_tracing()
    )


class _Direct(torch.autograd.Function):
    """A kernel and its gradient without the registered operator."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, rest: Sequence[Any], *tensors: Tensor) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.kernels, ctx.rest = kernels, rest
        return kernels.forward(*tensors, *rest)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        given = (*grad_outputs, *ctx.saved_tensors)
        if torch.is_grad_enabled():  # with create_graph=True
            found = _Gradient.apply(ctx.kernels, ctx.rest, *given)
        else:
            found = ctx.kernels.backward(*given, *ctx.rest)
        return None, None, *_wanted(ctx, found, 2)


class _Gradient(torch.autograd.Function):
    """The gradients of a kernel where theirs may be asked for: that is an error, never a silent zero."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, rest: Sequence[Any], *given: Tensor) -> tuple[Tensor, ...]:
        return kernels.backward(*given, *rest)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise RuntimeError("compiled operators have no second derivatives")


def _wanted(ctx: Any, gradients: Sequence[Tensor], first: int) -> tuple[Tensor | None, ...]:
    """The gradients somebody needs; `first` is the place of the first tensor among the inputs."""
    needs = ctx.needs_input_grad[first:]
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=False))
