"""Residual addition and the layer norm after it on the compiled CPU kernels (csrc/add_layer_norm.h).

The gradient is put together from PyTorch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allsight.ops import _native
from allsight.ops._rows import layer_norm_gradient, layer_norm_with_gradient, run_addition


def forward(
    residual: Tensor, branch: Tensor, scale: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute `allsight.ops.add_layer_norm`; types may differ, what comes out has that of `residual`."""
    given = (residual, branch, scale, norm_weight, norm_bias)
    total, normalised = run_addition("add_layer_norm_forward", *given, eps, outputs=2)
    return total, normalised


def backward(
    grad_sum: Tensor,
    grad: Tensor,
    residual: Tensor,
    branch: Tensor,
    scale: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    """Gradients of all tensors, in their types."""
    given = (residual, branch, scale, norm_weight, norm_bias)
    dtype = _native.compute_type(*given)
    r, b, s, w, shift = (_native.dense(tensor, dtype) for tensor in given)
    total = r + b * s if s.numel() else r + b
    _, mean, factor = layer_norm_with_gradient(total, w, shift, eps)
    grad, grad_weight, grad_bias = layer_norm_gradient(grad.to(dtype), total, mean, factor, w, shift)
    grad = grad + grad_sum.to(dtype)
    grad_branch = grad * s if s.numel() else grad.clone()
    grad_scale = (grad * b).flatten(0, -2).sum(0) if s.numel() else torch.zeros_like(s)
    found = grad, grad_branch, grad_scale, grad_weight, grad_bias
    return tuple(g.to(tensor.dtype) for g, tensor in zip(found, given, strict=True))
