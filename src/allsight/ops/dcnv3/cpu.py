"""DCNv3 on the compiled CPU kernels (csrc/dcnv3.h)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from allsight.ops import _native
from allsight.ops.dcnv3._geometry import Geometry


def refuses(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> str | None:
    """Why the kernels cannot serve a call; None if they can."""
    if value.device.type != "cpu":
        return f"value is on {value.device}"
    if value.shape[1] * value.shape[2] >= 2**31:
        return f"a map of {value.shape[1]}x{value.shape[2]} pixels has more than 2^31"
    return None


def forward(value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, softmax: bool) -> Tensor:
    """Compute `allsight.ops.dcnv3`; types may differ, the output has that of `value`."""
    dtype = _native.compute_type((value, offset, mask))
    inputs = value.to(dtype).contiguous(), _rows(offset.to(dtype)), _rows(mask.to(dtype))
    out = torch.empty(*offset.shape[:3], value.shape[3], dtype=dtype)
    call = _call(*inputs, geometry, softmax)
    call.out = out.data_ptr()
    _native.run("dcnv3_forward", call, dtype)
    return out.to(value.dtype)


def backward(
    grad: Tensor, value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offset and mask, in their types."""
    dtype = _native.compute_type((value, offset, mask))
    inputs = value.to(dtype).contiguous(), _rows(offset.to(dtype)), _rows(mask.to(dtype))
    grad = grad.to(dtype).contiguous()
    grads = tuple(torch.empty(t.shape, dtype=dtype) for t in (value, offset, mask))
    call = _call(*inputs, geometry, softmax)
    call.grad_out = grad.data_ptr()
    call.grad_value, call.grad_offset, call.grad_mask = (t.data_ptr() for t in grads)
    _native.run("dcnv3_backward", call, dtype)
    return grads[0].to(value.dtype), grads[1].to(offset.dtype), grads[2].to(mask.dtype)


def _call(
    value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, softmax: bool
) -> _native.Dcnv3Call:
    batch, height, width, channels = value.shape
    groups, (reach_h, reach_w) = geometry.groups, geometry.reach
    call = _native.Dcnv3Call(
        batch,
        height,
        width,
        groups,
        channels // groups,
        offset.shape[1],
        offset.shape[2],
        geometry.points,
        *geometry.stride,
        reach_h - geometry.padding[0],
        reach_w - geometry.padding[1],
        offset.stride(2),
        mask.stride(2),
        softmax,
        torch.get_num_threads(),
        geometry.offset_scale,
    )
    call.taps = _taps(geometry, value.dtype).data_ptr()
    call.value, call.offset, call.mask = value.data_ptr(), offset.data_ptr(), mask.data_ptr()
    return call


@lru_cache(maxsize=256)
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


def _rows(tensor: Tensor) -> Tensor:
    """The same values, pixels one fixed step apart: a slice of a wider projection needs no copy."""
    batch, rows, columns, width = tensor.shape
    step = tensor.stride(2)
    if tensor.stride() == (rows * columns * step, columns * step, step, 1) and step >= width:
        return tensor
    return tensor.contiguous()
