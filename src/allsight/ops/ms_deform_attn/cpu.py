"""Multi-scale deformable attention on the compiled CPU kernels (csrc/ms_deform_attn.h)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from allsight.ops import _native
from allsight.ops.ms_deform_attn._shapes import Shapes


def forward(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, softmax: bool) -> Tensor:
    """Compute `allsight.ops.ms_deform_attn`; types may differ, the output has that of `value`."""
    dtype, value_type = _native.compute_type(value, locations, weights), value.dtype
    value, locations, weights = (_native.dense(tensor, dtype) for tensor in (value, locations, weights))
    batch, _, heads, channels = value.shape
    out = torch.empty((batch, locations.shape[1], heads * channels), dtype=dtype)
    call = _call(value, shapes, locations, weights, softmax)
    call.out = out.data_ptr()
    _native.run("ms_deform_attn_forward", call, dtype)
    return out if dtype is value_type else out.to(value_type)


def backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, in their types."""
    dtype = _native.compute_type(value, locations, weights)
    given = [_native.dense(tensor, dtype) for tensor in (value, locations, weights)]
    grad = _native.dense(grad, dtype)
    grads = [torch.empty(tensor.shape, dtype=dtype) for tensor in given]
    call = _call(given[0], shapes, given[1], given[2], softmax)
    call.grad_out = grad.data_ptr()
    call.grad_value, call.grad_locations, call.grad_weights = (tensor.data_ptr() for tensor in grads)
    _native.run("ms_deform_attn_backward", call, dtype)
    return grads[0].to(value.dtype), grads[1].to(locations.dtype), grads[2].to(weights.dtype)


def _call(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, softmax: bool
) -> _native.MsDeformAttnCall:
    """The arguments of a call, without outputs and gradients."""
    if value.shape[1] >= _native.MOST_PIXELS:
        raise ValueError(
            f"ms_deform_attn: value: {value.shape[1]} pixels, more than the CPU kernels can count"
        )
    batch, pixels, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    call = _native.MsDeformAttnCall(
        batch, pixels, heads, channels, queries, levels, points, softmax, torch.get_num_threads()
    )
    table = call.kept = _table(shapes)  # lives as long as the call
    call.shapes = table.data_ptr()
    call.value, call.locations, call.weights = value.data_ptr(), locations.data_ptr(), weights.data_ptr()
    return call


@lru_cache(maxsize=1024)
def _table(shapes: Shapes) -> Tensor:
    return torch.tensor(shapes, dtype=torch.int64)
