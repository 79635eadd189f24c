"""Depth-wise convolution, layer norm and activation on the compiled CPU kernels (csrc/depthwise_norm_act.h).

The gradient is put together from PyTorch's own: the three steps are computed again, and what it costs is the
gradient of the convolution's weight. The output is the same for any number of threads; the gradient is as
repeatable as PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allsight.ops import _native
from allsight.ops._rows import layer_norm_gradient, layer_norm_with_gradient

_KINDS = {"none": 0, "relu": 1, "silu": 2, "gelu": 3}
_ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda grad, x: grad,
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "silu": torch.ops.aten.silu_backward,
    "gelu": torch.ops.aten.gelu_backward,
}


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    act: str,
) -> Tensor:
    """Compute `allsight.ops.depthwise_norm_act`; types may differ, the output has that of `x`."""
    dtype, x_type = _native.compute_type(x, weight, bias, norm_weight, norm_bias), x.dtype
    x, weight = _native.dense(x, dtype), _taps(weight, dtype)
    vectors = [_native.dense(vector, dtype) for vector in (bias, norm_weight, norm_bias)]
    out = torch.empty(x.shape, dtype=dtype)
    channel_step, tap_step = weight.stride(0), weight.stride(3)
    call = _native.DepthwiseNormActCall(
        *x.shape, weight.shape[3], _KINDS[act], channel_step, tap_step, torch.get_num_threads(), eps
    )
    call.x, call.weight, call.out = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    call.bias, call.norm_weight, call.norm_bias = (vector.data_ptr() or None for vector in vectors)
    _native.run("depthwise_norm_act_forward", call, dtype)
    return out if dtype is x_type else out.to(x_type)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    act: str,
) -> tuple[Tensor, ...]:
    """Gradients of all tensors, in their types."""
    given = (x, weight, bias, norm_weight, norm_bias)
    dtype = _native.compute_type(*given)
    seen, taps, shift, scale, move = (tensor.to(dtype) for tensor in given)
    channels, kernel = x.shape[3], weight.shape[3]
    padding, ones, has_bias = [kernel // 2] * 2, [1, 1], bias.numel() > 0
    seen = seen.contiguous().permute(0, 3, 1, 2)
    y = torch.convolution(
        seen, taps, shift if has_bias else None, ones, padding, ones, False, [0, 0], channels
    )
    y = y.permute(0, 2, 3, 1).contiguous()
    normalised, mean, factor = layer_norm_with_gradient(y, scale, move, eps)
    grad = _ACTIVATION_GRADIENTS[act](grad.to(dtype).contiguous(), normalised)
    grad, grad_scale, grad_move = layer_norm_gradient(grad, y, mean, factor, scale, move)
    grad_x, grad_taps, grad_shift = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        seen,
        taps,
        [channels],
        ones,
        padding,
        ones,
        False,
        [0, 0],
        channels,
        [True, True, has_bias],
    )
    found = (
        grad_x.permute(0, 2, 3, 1),
        grad_taps,
        grad_shift if has_bias else torch.zeros_like(bias),
        grad_scale,
        grad_move,
    )
    return tuple(g.to(tensor.dtype).contiguous() for g, tensor in zip(found, given, strict=True))


def _taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The same values in that type, the taps of a channel one fixed step apart."""
    if weight.dtype is not dtype:
        weight = weight.to(dtype)
    even = weight.stride(2) == weight.shape[3] * weight.stride(3)
    return weight if even else weight.contiguous()
