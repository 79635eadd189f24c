"""Layer norm and the residual addition after it on the compiled CPU kernels (csrc/add_layer_norm.h).

The gradient is put together from PyTorch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allsight.ops import _native
from allsight.ops._rows import layer_norm_gradient, layer_norm_with_gradient, run_addition


def forward(
    residual: Tensor, branch: Tensor, scale: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> Tensor:
    """Compute `allsight.ops.layer_norm_add`; types may differ, what comes out has that of `residual`."""
    given = (residual, branch, scale, norm_weight, norm_bias)
    return run_addition("layer_norm_add_forward", *given, eps, outputs=1)[0]


def backward(
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
    _, b, s, w, shift = (_native.dense(tensor, dtype) for tensor in given)
    grad = grad.to(dtype)
    normalised, mean, factor = layer_norm_with_gradient(b, w, shift, eps)
    inner = grad * s if s.numel() else grad
    grad_branch, grad_weight, grad_bias = layer_norm_gradient(inner, b, mean, factor, w, shift)
    grad_scale = (grad * normalised).flatten(0, -2).sum(0) if s.numel() else torch.zeros_like(s)
    found = grad.clone(), grad_branch, grad_scale, grad_weight, grad_bias
    return tuple(g.to(tensor.dtype) for g, tensor in zip(found, given, strict=True))
