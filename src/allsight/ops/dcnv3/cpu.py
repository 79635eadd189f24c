"""DCNv3 on the compiled CPU kernels (csrc/dcnv3.h)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from allsight.ops import _native
from allsight.ops.dcnv3._geometry import Geometry


def forward(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, softmax: bool) -> Tensor:
    """Compute `allsight.ops.dcnv3`; types may differ, the output has that of `value`."""
    dtype, value_type = _native.compute_type(value, offset, mask), value.dtype
    value, offset, mask = _native.dense(value, dtype), _rows(offset, dtype), _rows(mask, dtype)
    call, shape = _call(value, offset, mask, geometry, softmax)
    out = _native.room_like(value) if value.shape == shape else torch.empty(shape, dtype=dtype)
    call.out = out.data_ptr()
    _native.run("dcnv3_forward", call, dtype)
    return _native.as_type(out, value_type)


def backward(
    grad: Tensor, value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offset and mask, in their types."""
    dtype = _native.compute_type(value, offset, mask)
    given = _native.dense(value, dtype), _rows(offset, dtype), _rows(mask, dtype)
    grad = _native.dense(grad, dtype)
    grads = [_native.room_like(tensor) for tensor in given]
    call, _ = _call(*given, geometry, softmax)
    call.grad_out = grad.data_ptr()
    call.grad_value, call.grad_offset, call.grad_mask = (tensor.data_ptr() for tensor in grads)
    _native.run("dcnv3_backward", call, dtype)
    as_type = _native.as_type
    return as_type(grads[0], value.dtype), as_type(grads[1], offset.dtype), as_type(grads[2], mask.dtype)


def _call(
    value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, softmax: bool
) -> tuple[_native.Dcnv3Call, Sequence[int]]:
    """The arguments of a call, without outputs and gradients, and the shape of its output."""
    steps = offset.stride(2), mask.stride(2)
    key = (geometry, softmax, value.shape, value.dtype, steps)
    sizes = _sizes.get(key)
    if sizes is None:
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        batch, height, width, channels = value.shape
        if height * width >= _native.MOST_PIXELS:
            raise ValueError(f"dcnv3: value: {height}x{width} pixels, more than the CPU kernels can count")
        reach_h, reach_w = geometry.reach
        origin = reach_h - geometry.padding[0], reach_w - geometry.padding[1]
        groups, output = geometry.groups, geometry.output_size(height, width)
        integers = (batch, height, width, groups, channels // groups, *output, geometry.points)
        call = _native.Dcnv3Call(*integers, *geometry.stride, *origin, *steps, softmax)
        call.offset_scale, call.taps = geometry.offset_scale, _taps(geometry, value.dtype).data_ptr()
        sizes = _sizes[key] = bytes(call), (batch, *output, channels)
    packed, shape = sizes
    call = _native.Dcnv3Call.from_buffer_copy(packed)
    call.threads = torch.get_num_threads()
    call.value, call.offset, call.mask = value.data_ptr(), offset.data_ptr(), mask.data_ptr()
    return call, shape


# What does not change between calls of one layer, ready to be copied.
_sizes: dict[tuple[Any, ...], tuple[bytes, Sequence[int]]] = {}
_MOST_SIZES = 4096


@cache
def _taps(geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """Displacement (x, y) of every point from the middle of the kernel; the column is the slow index."""
    (rows, columns), (reach_y, reach_x) = geometry.kernel_size, geometry.reach
    taps = [
        (column * geometry.dilation[1] - reach_x, row * geometry.dilation[0] - reach_y)
        for column in range(columns)
        for row in range(rows)
    ]
    if geometry.remove_center:
        del taps[len(taps) // 2]
    return torch.tensor(taps, dtype=dtype)


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same values in that type, pixels one fixed step apart: part of a wider projection needs no copy."""
    tensor = _native.as_type(tensor, dtype)
    if tensor.is_contiguous():
        return tensor
    _, rows, columns, width = tensor.shape
    step = tensor.stride(2)
    apart = step >= width and tensor.stride() == (rows * columns * step, columns * step, step, 1)
    return tensor if apart else tensor.contiguous()
