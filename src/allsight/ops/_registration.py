"""Kernels as PyTorch operators: one name in `torch.ops.allsight`, whatever computes it.

An operator is registered once, with its shape rule (for meta tensors, `torch.compile` and `torch.export`) and
its gradient; the name of the backend travels as an argument. Under autocast tensors stay in the types in
which they come: kernels take 16-bit features beside float32 places, and compute in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("allsight", "FRAGMENT")


def register(
    name: str,
    *,
    tensors: Sequence[str],
    options: str,
    parse: Callable[..., tuple[Any, ...]],
    output: Callable[..., Sequence[Any]],
) -> Callable[..., Tensor]:
    """Define `allsight::NAME` and `allsight::NAME_backward`; return the way to call the former.

    Its arguments are the tensors, the options, and the name of a backend: the module of that name beside
    this one's `NAME` folder, which has `forward(*tensors, *parsed)` and `backward(grad, *tensors, *parsed)`.

    Args:
        name: Name of the operator and of its folder.
        tensors: Names of its tensors. The output has the type of the first, each gradient that of its tensor.
        options: Schema of all that follows the tensors.
        parse: From the options to what the kernels take after the tensors.
        output: Shape of the output, from the tensors and parsed options.
    """
    arguments = ", ".join(f"Tensor {tensor}" for tensor in tensors) + f", {options}, str backend"
    gradients = ", ".join("Tensor" for _ in tensors)
    count = len(tensors)
    modules: dict[str, Any] = {}

    def kernels(backend: str) -> Any:
        if backend not in modules:
            modules[backend] = import_module(f"allsight.ops.{name}.{backend}")
        return modules[backend]

    def forward(*call: Any) -> Tensor:
        return kernels(call[-1]).forward(*call[:count], *parse(*call[count:-1]))

    def backward(grad: Tensor, *call: Any) -> tuple[Tensor, ...]:
        return kernels(call[-1]).backward(grad, *call[:count], *parse(*call[count:-1]))

    def fake_forward(*call: Any) -> Tensor:
        given = call[:count]
        return given[0].new_empty(output(*given, *parse(*call[count:-1])))

    def fake_backward(grad: Tensor, *call: Any) -> tuple[Tensor, ...]:
        return tuple(tensor.new_empty(tensor.shape) for tensor in call[:count])

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.options = inputs[count:]

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = backward_operator(grad, *ctx.saved_tensors, *ctx.options)
        wanted = zip(found, ctx.needs_input_grad, strict=False)
        return *(tensor if wants else None for tensor, wants in wanted), *(None for _ in ctx.options)

    for suffix, schema, run, fake in (
        ("", f"({arguments}) -> Tensor", forward, fake_forward),
        ("_backward", f"(Tensor grad, {arguments}) -> ({gradients})", backward, fake_backward),
    ):
        _LIBRARY.define(f"{name}{suffix}{schema}")
        _LIBRARY.impl(f"{name}{suffix}", run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"allsight::{name}{suffix}", fake, lib=_LIBRARY)
    backward_operator = getattr(torch.ops.allsight, f"{name}_backward").default
    torch.library.register_autograd(f"allsight::{name}", differentiate, setup_context=keep, lib=_LIBRARY)
    operator = getattr(torch.ops.allsight, name).default

    def call(*arguments: Any) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return operator(*arguments)
        # Nothing to record: past autograd at once, which saves a third of the time of a small call.
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return call
