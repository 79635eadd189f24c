"""Multi-scale deformable attention on the compiled CPU kernels (csrc/ms_deform_attn.h)."""

from __future__ import annotations

from typing import Any

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
    return _native.as_type(out, value_type)


def backward(
    grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, in their types."""
    dtype = _native.compute_type(value, locations, weights)
    given = [_native.dense(tensor, dtype) for tensor in (value, locations, weights)]
    grad = _native.dense(grad, dtype)
    grads = [_native.room_like(tensor) for tensor in given]
    call = _call(given[0], shapes, given[1], given[2], softmax)
    call.grad_out = grad.data_ptr()
    call.grad_value, call.grad_locations, call.grad_weights = (tensor.data_ptr() for tensor in grads)
    _native.run("ms_deform_attn_backward", call, dtype)
    of_value, of_locations, of_weights = grads
    as_type = _native.as_type
    return (
        as_type(of_value, value.dtype),
        as_type(of_locations, locations.dtype),
        as_type(of_weights, weights.dtype),
    )


def _call(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, softmax: bool
) -> _native.MsDeformAttnCall:
    """The arguments of a call, without outputs and gradients."""
    key = (value.shape, locations.shape, shapes, softmax)
    sizes = _sizes.get(key)
    if sizes is None:
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        batch, pixels, heads, channels = value.shape
        if pixels >= _native.MOST_PIXELS:
            raise ValueError(f"ms_deform_attn: value: {pixels} pixels, more than the CPU kernels can count")
        _, queries, _, levels, points, _ = locations.shape
        new = _native.MsDeformAttnCall(batch, pixels, heads, channels, queries, levels, points, softmax)
        table = torch.tensor(shapes, dtype=torch.int64)
        new.shapes = table.data_ptr()
        sizes = _sizes[key] = bytes(new), table
    call = _native.MsDeformAttnCall.from_buffer_copy(sizes[0])
    call.kept = sizes[1]  # lives as long as the call
    call.threads = torch.get_num_threads()
    call.value, call.locations, call.weights = value.data_ptr(), locations.data_ptr(), weights.data_ptr()
    return call


# What does not change between calls of one layer, ready to be copied, and the table of its maps.
_sizes: dict[tuple[Any, ...], tuple[bytes, Tensor]] = {}
_MOST_SIZES = 4096
