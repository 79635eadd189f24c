"""DCNv3 as Triton kernels: `forward` and `backward` of the operator, without dispatch and autograd.

A program computes a tile of output pixels (8 x 8 where the map's size allows) of one image and one group; the
programs of the groups of a tile are neighbours, since they share cache lines. Samples of a square tile
overlap, so that of 36 corner reads a pixel about three go past L1.

Letters as in `reference.py`; n output pixels of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from allsight.ops._triton import (
    MapGradient,
    Task,
    Tile,
    check_map_size,
    computing_type,
    on_device_of,
    pixel_pitch,
    pixel_tile,
    unrolled,
)
from allsight.ops._triton_sampling import (
    TYPES,
    find_cell,
    put,
    sample,
    sample_backward,
    softmax_terms,
    softmax_tile,
)
from allsight.ops.dcnv3._geometry import Geometry


@triton.jit
@no_type_check
def _locate(
    groups,
    rows,
    columns,
    tiles_x,
    tiles,
    TILE: tl.constexpr,
):
    """Return image, group, output row and column [n], place in the output of the pixel [n], valid [n]."""
    program = tl.program_id(0)
    group = program % groups
    tile = (program // groups) % tiles
    image = (program // groups // tiles).to(tl.int64)
    lane = tl.arange(0, TILE[0] * TILE[1])
    oy = (tile // tiles_x) * TILE[0] + lane // TILE[1]
    ox = (tile % tiles_x) * TILE[1] + lane % TILE[1]
    pixel = image * rows * columns + oy * columns + ox
    return image, group, oy, ox, pixel, (oy < rows) & (ox < columns)


@triton.jit
@no_type_check
def _find_point(
    point,
    offsets,
    oy,
    ox,
    valid,
    height,
    width,
    KERNEL: tl.constexpr,
    CENTER: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    REACH: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Return where a kernel point of the pixels reads: inside [n], cell y and x [n], rest v and u [n]."""
    # x and y in one load; without the center, points from CENTER on are one further in the kernel.
    pair = tl.load(offsets[:, None] + (2 * point + tl.arange(0, 2))[None, :], mask=valid[:, None], other=0.0)
    dx, dy = tl.split(pair.to(DTYPE))
    tap = point + point // CENTER
    local_y = SCALE * ((tap % KERNEL[0]) * DILATION[0] - REACH[0] + dy)
    local_x = SCALE * ((tap // KERNEL[0]) * DILATION[1] - REACH[1] + dx)
    inside_y, y, v = find_cell(local_y, oy * STRIDE[0] + (REACH[0] - PADDING[0]), height)
    inside_x, x, u = find_cell(local_x, ox * STRIDE[1] + (REACH[1] - PADDING[1]), width)
    return valid & inside_y & inside_x, y, x, v, u


# Sizes differ from call to call and must not cause compilations; what follows from a layer is constant.
_SIZES = ["groups", "height", "width", "rows", "columns", "tiles_x", "tiles", "offset_pitch", "mask_pitch"]


@triton.jit(do_not_specialize=_SIZES)
@no_type_check
def _forward_kernel(
    value,
    offset,
    mask,
    out,
    groups,
    height,
    width,
    rows,
    columns,
    tiles_x,
    tiles,
    offset_pitch,
    mask_pitch,
    OFFSET_UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    UNROLL: tl.constexpr,
    FLAT: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    CENTER: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    REACH: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    image, group, oy, ox, pixel, valid = _locate(groups, rows, columns, tiles_x, tiles, TILE)
    pitch = (groups * CHANNELS).to(tl.int64)
    plane = value + image * height * width * pitch + group * CHANNELS
    offsets = offset + pixel * (offset_pitch * OFFSET_UNIT) + group * (2 * POINTS)
    weights = mask + pixel * mask_pitch + group * POINTS
    largest, divisor = 0.0, 1.0
    if SOFTMAX:
        largest, divisor = softmax_terms(weights, valid, POINTS, FLAT, DTYPE)

    mixed = tl.zeros((TILE[0] * TILE[1], BLOCK), DTYPE)
    for first in range(0, POINTS, UNROLL):
        for step in tl.static_range(UNROLL):
            point = first + step
            inside, y, x, v, u = _find_point(
                point,
                offsets,
                oy,
                ox,
                valid,
                height,
                width,
                KERNEL,
                CENTER,
                STRIDE,
                PADDING,
                DILATION,
                REACH,
                SCALE,
                DTYPE,
            )
            weight = tl.load(weights + point, mask=valid, other=0.0).to(DTYPE)
            if SOFTMAX:
                weight = tl.exp(weight - largest) / divisor
            mixed += sample(plane, inside, y, x, v, u, weight, height, width, pitch, CHANNELS, BLOCK)

    channel = tl.arange(0, BLOCK)[None, :]
    places = out + (pixel[:, None] * pitch + group * CHANNELS + channel)
    tl.store(places, mixed.to(out.dtype.element_ty), mask=valid[:, None] & (channel < CHANNELS))


@triton.jit(do_not_specialize=_SIZES)
@no_type_check
def _backward_kernel(
    grad,
    value,
    offset,
    mask,
    total,
    factors,
    grad_offset,
    grad_mask,
    groups,
    height,
    width,
    rows,
    columns,
    tiles_x,
    tiles,
    offset_pitch,
    mask_pitch,
    OFFSET_UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    UNROLL: tl.constexpr,
    FLAT: tl.constexpr,
    SOFTMAX: tl.constexpr,
    TILE: tl.constexpr,
    KERNEL: tl.constexpr,
    CENTER: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    REACH: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
    FIXED_POINT: tl.constexpr,
):
    image, group, oy, ox, pixel, valid = _locate(groups, rows, columns, tiles_x, tiles, TILE)
    pitch = (groups * CHANNELS).to(tl.int64)
    map_start = image * height * width * pitch + group * CHANNELS
    offsets = offset + pixel * (offset_pitch * OFFSET_UNIT) + group * (2 * POINTS)
    weights = mask + pixel * mask_pitch + group * POINTS
    largest, divisor = 0.0, 1.0
    if SOFTMAX:
        largest, divisor = softmax_terms(weights, valid, POINTS, FLAT, DTYPE)
    channel = tl.arange(0, BLOCK)[None, :]
    places = grad + (pixel[:, None] * pitch + group * CHANNELS + channel)
    d = tl.load(places, mask=valid[:, None] & (channel < CHANNELS), other=0.0).to(DTYPE)
    addend, units = d, 1.0
    if FIXED_POINT:
        addend, units = d * tl.load(factors + 2 * image), tl.load(factors + 2 * image + 1)

    # Collected in registers and written in whole rows: single columns would fill 4 of 32 bytes of a sector.
    for_mask = tl.zeros((TILE[0] * TILE[1], BLOCK_POINTS), DTYPE)
    for_x = tl.zeros((TILE[0] * TILE[1], BLOCK_POINTS), DTYPE)
    for_y = tl.zeros((TILE[0] * TILE[1], BLOCK_POINTS), DTYPE)
    for first in range(0, POINTS, UNROLL):
        for step in tl.static_range(UNROLL):
            point = first + step
            inside, y, x, v, u = _find_point(
                point,
                offsets,
                oy,
                ox,
                valid,
                height,
                width,
                KERNEL,
                CENTER,
                STRIDE,
                PADDING,
                DILATION,
                REACH,
                SCALE,
                DTYPE,
            )
            weight = tl.load(weights + point, mask=valid, other=0.0).to(DTYPE)
            if SOFTMAX:
                weight = tl.exp(weight - largest) / divisor
            product, along_x, along_y = sample_backward(
                value + map_start,
                total + map_start,
                d,
                addend,
                units,
                inside,
                y,
                x,
                v,
                u,
                weight,
                height,
                width,
                pitch,
                CHANNELS,
                BLOCK,
                FIXED_POINT,
            )
            for_mask = put(for_mask, point, product)
            for_x = put(for_x, point, SCALE * weight * along_x)
            for_y = put(for_y, point, SCALE * weight * along_y)

    point = tl.arange(0, BLOCK_POINTS)[None, :]
    real = valid[:, None] & (point < POINTS)
    if SOFTMAX:
        shares = softmax_tile(weights, valid, POINTS, BLOCK_POINTS, DTYPE)
        for_mask = shares * (for_mask - tl.sum(shares * for_mask, 1)[:, None])
    places = (pixel * groups + group)[:, None] * POINTS + point
    tl.store(grad_mask + places, for_mask.to(grad_mask.dtype.element_ty), mask=real)
    pair = tl.join(for_x, for_y)
    places = 2 * places[:, :, None] + tl.arange(0, 2)[None, None, :]
    tl.store(grad_offset + places, pair.to(grad_offset.dtype.element_ty), mask=real[:, :, None])


@dataclass(frozen=True)
class _Call:
    grid: tuple[int]
    arguments: dict[str, Any]


def _prepare(
    task: Task, value: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, softmax: bool
) -> tuple[Tensor, Tensor, Tensor, _Call]:
    """Return the tensors as kernels take them, and what both kernels are called with besides them."""
    batch, height, width, channels = value.shape
    rows, columns = offset.shape[1:3]
    groups, points = geometry.groups, geometry.points
    check_map_size("dcnv3: value", height, width)
    offset_pitch, mask_pitch = pixel_pitch(offset), pixel_pitch(mask)
    if offset_pitch is None:
        offset = offset.contiguous()
        offset_pitch = offset.shape[3]
    if mask_pitch is None:
        mask = mask.contiguous()
        mask_pitch = mask.shape[3]
    # The compiler reads x and y at once only where it knows that the pair is aligned.
    unit = 2 - offset_pitch % 2

    tile = Tile.of(task, channels // groups, points, value)
    shape = pixel_tile(tile.rows, rows, columns)
    tiles_x = -(-columns // shape[1])
    tiles = tiles_x * -(-rows // shape[0])
    arguments = dict(
        groups=groups,
        height=height,
        width=width,
        rows=rows,
        columns=columns,
        tiles_x=tiles_x,
        tiles=tiles,
        offset_pitch=offset_pitch // unit,
        mask_pitch=mask_pitch,
        OFFSET_UNIT=unit,
        CHANNELS=channels // groups,
        BLOCK=tile.channels,
        POINTS=points,
        BLOCK_POINTS=tile.points,
        UNROLL=unrolled(points, 5),
        FLAT=unrolled(points, 25),
        SOFTMAX=softmax,
        TILE=shape,
        KERNEL=geometry.kernel_size,
        # A removed center is the middle of an odd number, so that twice its index is the number of the rest.
        CENTER=points // 2 if geometry.remove_center else points,
        STRIDE=geometry.stride,
        PADDING=geometry.padding,
        DILATION=geometry.dilation,
        REACH=geometry.reach,
        SCALE=geometry.offset_scale,
        DTYPE=TYPES[computing_type(value, offset, mask)],
        num_warps=tile.num_warps,
    )
    return value.contiguous(), offset, mask, _Call((batch * tiles * groups,), arguments)


def forward(
    value: Float[Tensor, "b h w c"],
    offset: Float[Tensor, "b ho wo gpx2"],
    mask: Float[Tensor, "b ho wo gp"],
    geometry: Geometry,
    softmax: bool,
) -> Float[Tensor, "b ho wo c"]:
    """Compute `allsight.ops.dcnv3`; all tensors on one GPU, or anywhere under TRITON_INTERPRET=1."""
    batch, rows, columns, _ = offset.shape
    out = value.new_empty(batch, rows, columns, value.shape[3])
    if out.numel() == 0:
        return out
    value, offset, mask, call = _prepare("forward", value, offset, mask, geometry, softmax)
    with on_device_of(value):
        _forward_kernel[call.grid](value, offset, mask, out, **call.arguments)
    return out


def backward(
    grad: Float[Tensor, "b ho wo c"],
    value: Float[Tensor, "b h w c"],
    offset: Float[Tensor, "b ho wo gpx2"],
    mask: Float[Tensor, "b ho wo gp"],
    geometry: Geometry,
    softmax: bool,
) -> tuple[Float[Tensor, "b h w c"], Float[Tensor, "b ho wo gpx2"], Float[Tensor, "b ho wo gp"]]:
    """Return the gradients of value, offset and mask (of the logits, with softmax), in their types.

    Equal bit for bit from run to run if `torch.are_deterministic_algorithms_enabled()`; see `MapGradient`.
    """
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    if grad.numel() == 0 or value.numel() == 0:
        return torch.zeros_like(value), grad_offset.zero_(), grad_mask.zero_()
    total = MapGradient.of(
        value,
        computing_type(value, offset, mask),
        grad,
        None if softmax else mask,
        addends=offset.shape[1] * offset.shape[2] * geometry.points,
    )
    task = "deterministic" if total.is_fixed_point else "backward"
    value, offset, mask, call = _prepare(task, value, offset, mask, geometry, softmax)
    with on_device_of(value):
        _backward_kernel[call.grid](
            grad.contiguous(),
            value,
            offset,
            mask,
            total.total,
            total.factors,
            grad_offset,
            grad_mask,
            **call.arguments,
            FIXED_POINT=total.is_fixed_point,
        )
    return total.result(value.dtype), grad_offset, grad_mask
