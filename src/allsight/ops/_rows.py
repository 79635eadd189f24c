"""What operators with a layer norm in them share: checks of shapes, and the norm's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from allsight.ops import _native
from allsight.ops._tensors import check_tensors


def check_vectors(operator: str, channels: int, of: str, **vectors: Tensor | None) -> None:
    """Check that each is one value per channel; None is left out.

    Raises:
        ValueError: One is not; the message names it, what was expected and what was given.
    """
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != (channels,):
            raise ValueError(
                f"{operator}: {name}: expected shape ({channels},), one value per channel of {of}, "
                f"got {tuple(vector.shape)}"
            )


def check_devices(operator: str, of: str, like: Tensor, **tensors: Tensor | None) -> None:
    """Check that all lie where `like` does; None is left out.

    Raises:
        ValueError: One does not; the message names it.
    """
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.get_device() != like.get_device() or tensor.is_cpu != like.is_cpu):
            raise ValueError(f"{operator}: {name}: expected on {like.device} like {of}, got {tensor.device}")


def check_addition(operator: str, residual: Tensor, branch: Tensor, **vectors: Tensor | None) -> None:
    """Refuse a branch that cannot be added to `residual`, and vectors that are not of its channels."""
    given = {name: vector for name, vector in vectors.items() if vector is not None}
    check_tensors(operator, residual=residual, branch=branch, **given)
    if residual.ndim < 1 or residual.shape[-1] < 1:
        raise ValueError(
            f"{operator}: residual: expected [..., c] with c >= 1, got shape {tuple(residual.shape)}"
        )
    if branch.shape != residual.shape:
        raise ValueError(
            f"{operator}: branch: expected shape {tuple(residual.shape)} like residual, "
            f"got {tuple(branch.shape)}"
        )
    check_vectors(operator, residual.shape[-1], "residual", **vectors)
    check_devices(operator, "residual", residual, branch=branch, **vectors)


def layer_norm_with_gradient(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm over the last dimension, and the mean and inverse deviation that its gradient needs."""
    return torch.ops.aten.native_layer_norm(x, [x.shape[-1]], weight, bias, eps)


def layer_norm_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, factor: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    return torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x, [x.shape[-1]], mean, factor, weight, bias, [True, True, True]
    )


def run_addition(
    kernel: str,
    residual: Tensor,
    branch: Tensor,
    scale: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Run the compiled "add_layer_norm_forward" (two outputs) or "layer_norm_add_forward" (one)."""
    dtype = _native.compute_type(residual, branch, scale, norm_weight, norm_bias)
    given = [_native.dense(tensor, dtype) for tensor in (residual, branch, scale, norm_weight, norm_bias)]
    filled = [torch.empty(residual.shape, dtype=dtype) for _ in range(outputs)]
    channels = residual.shape[-1]
    pointers = [tensor.data_ptr() or None for tensor in (*given, *filled)]
    sizes = residual.numel() // channels, channels, torch.get_num_threads()
    _native.run(kernel, _native.AddLayerNormCall(*sizes, eps, *pointers), dtype)
    return tuple(tensor.to(residual.dtype) for tensor in filled)
