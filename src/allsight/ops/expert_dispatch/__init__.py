"""Each token through the linear experts that were chosen for it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from allsight.ops._dispatch import Backend
from allsight.ops._registration import register
from allsight.ops._rows import check_devices
from allsight.ops._tensors import check_tensors
from allsight.ops.expert_dispatch.reference import expert_dispatch_reference

_NAME = "expert_dispatch"

EXPERT_DISPATCH = register(
    _NAME,
    tensors=("x", "weight", "bias", "experts", "gates"),
    options="",
    pack=lambda: (),
    unpack=lambda: (),
    output=lambda x, weight, *rest: (x.shape[0], weight.shape[1]),
    reference=expert_dispatch_reference,
    indices=("experts",),
    backends=("cpu", "triton"),
)


def expert_dispatch(
    x: Float[Tensor, "n c"],
    weight: Float[Tensor, "e out c"],
    bias: Float[Tensor, "e out"],
    experts: Int64[Tensor, "n k"],
    gates: Float[Tensor, "n k"],
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "n out"]:
    """Compute sum over the chosen e of gate_e (W_e x + b_e) for each token.

    Args:
        x: Tokens.
        weight: One matrix an expert, as in `torch.nn.Linear`.
        bias: One shift an expert.
        experts: Which experts each token gets, different ones; 0..e - 1.
        gates: How much of each; 0 where a choice found no room. May be in a wider type than the rest.
        backend: Implementation; "auto" follows `use_backend`, then ALLSIGHT_BACKEND, else the fastest usable.

    Returns:
        The mixed results, in the type of `x`.

    Raises:
        TypeError: One is no tensor of floating-point numbers, or `experts` none of int64.
        ValueError: A shape, type or device does not fit, or the backend asked for cannot serve the call.
    """
    check_tensors(_NAME, x=x, weight=weight, bias=bias, gates=gates)
    kind = getattr(experts, "dtype", type(experts).__name__)
    if kind != torch.int64:
        raise TypeError(f"{_NAME}: experts: expected a tensor of int64, got {kind}")
    num_experts, _, channels = weight.shape
    for name, found, expected in (
        ("x", x.shape[1:], (channels,)),
        ("bias", bias.shape, weight.shape[:2]),
        ("experts", experts.shape[:1], x.shape[:1]),
        ("gates", gates.shape, experts.shape),
    ):
        if tuple(found) != tuple(expected):
            raise ValueError(f"{_NAME}: {name}: expected {tuple(expected)}, got {tuple(found)}")
    if experts.shape[1] > num_experts:
        raise ValueError(f"{_NAME}: experts: {experts.shape[1]} a token, but there are {num_experts}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.dtype != x.dtype:
            raise ValueError(f"{_NAME}: {name}: expected {x.dtype} like x, got {tensor.dtype}")
    check_devices(_NAME, "x", x, weight=weight, bias=bias, experts=experts, gates=gates)
    return EXPERT_DISPATCH.run(backend, x, weight, bias, experts, gates)


__all__ = ["EXPERT_DISPATCH", "expert_dispatch"]
