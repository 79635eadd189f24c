"""Multi-scale deformable attention as Triton kernels, without dispatch and autograd.

A program computes consecutive queries of one image and one head; the programs of the heads of a block are
neighbours, since their samples share cache lines. Queries of an encoder or of a bird's-eye-view grid come row
by row, so a block is a strip of pixels: its samples overlap about a third as often as those of a square tile.
A caller that knows the grid of its queries would gain L1 hits by passing them in tiles of 8 x 8; the operator
itself only sees a sequence.

Letters: b batch, s pixels of all levels, q queries, m heads, d channels of a head, l levels, p points;
n queries of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
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
from allsight.ops.ms_deform_attn._shapes import Shapes


@triton.jit
@no_type_check
def _locate(heads, queries, blocks, positions, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Locate the queries of a program.

    Returns:
        Image, elements from pixel to pixel, first element of the head's map, row of the queries in locations,
        weights and output (numbered by image, query, head) [n], valid [n].
    """
    program = tl.program_id(0)
    head = program % heads
    block = (program // heads) % blocks
    image = (program // heads // blocks).to(tl.int64)
    query = block * ROWS + tl.arange(0, ROWS)
    pitch = (heads * CHANNELS).to(tl.int64)
    row = (image * queries + query) * heads + head
    return image, pitch, image * positions * pitch + head * CHANNELS, row, query < queries


@triton.jit
@no_type_check
def _find_point(places, valid, height, width, DTYPE: tl.constexpr):
    """Return where a point reads on its level: inside [n], cell y and x [n], rest v and u [n]."""
    pair = tl.load(places[:, None] + tl.arange(0, 2)[None, :], mask=valid[:, None], other=0.0)
    x, y = tl.split(pair.to(DTYPE))
    inside_y, y, v = find_cell(y * height - 0.5, 0, height)
    inside_x, x, u = find_cell(x * width - 0.5, 0, width)
    return valid & inside_y & inside_x, y, x, v, u


# Sizes differ from call to call and must not cause compilations; what follows from a layer is constant.
_SIZES = ["heads", "queries", "blocks", "positions"]


@triton.jit(do_not_specialize=_SIZES)
@no_type_check
def _forward_kernel(
    value,
    levels,
    locations,
    weights,
    out,
    heads,
    queries,
    blocks,
    positions,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    UNROLL: tl.constexpr,
    FLAT: tl.constexpr,
    SOFTMAX: tl.constexpr,
    DTYPE: tl.constexpr,
):
    _, pitch, map_start, row, valid = _locate(heads, queries, blocks, positions, ROWS, CHANNELS)
    places = locations + row * (2 * LEVELS * POINTS)
    weights += row * (LEVELS * POINTS)
    largest, divisor = 0.0, 1.0
    if SOFTMAX:
        largest, divisor = softmax_terms(weights, valid, LEVELS * POINTS, FLAT, DTYPE)

    mixed = tl.zeros((ROWS, BLOCK), DTYPE)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        plane = value + map_start + tl.load(levels + 3 * level + 2) * pitch
        for first in range(0, POINTS, UNROLL):
            for step in tl.static_range(UNROLL):
                point = level * POINTS + first + step
                inside, y, x, v, u = _find_point(places + 2 * point, valid, height, width, DTYPE)
                weight = tl.load(weights + point, mask=valid, other=0.0).to(DTYPE)
                if SOFTMAX:
                    weight = tl.exp(weight - largest) / divisor
                mixed += sample(plane, inside, y, x, v, u, weight, height, width, pitch, CHANNELS, BLOCK)

    channel = tl.arange(0, BLOCK)[None, :]
    tl.store(
        out + row[:, None] * CHANNELS + channel,
        mixed.to(out.dtype.element_ty),
        mask=valid[:, None] & (channel < CHANNELS),
    )


@triton.jit(do_not_specialize=_SIZES)
@no_type_check
def _backward_kernel(
    grad,
    value,
    levels,
    locations,
    weights,
    total,
    factors,
    grad_locations,
    grad_weights,
    heads,
    queries,
    blocks,
    positions,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_POINTS: tl.constexpr,
    UNROLL: tl.constexpr,
    FLAT: tl.constexpr,
    SOFTMAX: tl.constexpr,
    DTYPE: tl.constexpr,
    FIXED_POINT: tl.constexpr,
):
    image, pitch, map_start, row, valid = _locate(heads, queries, blocks, positions, ROWS, CHANNELS)
    places = locations + row * (2 * LEVELS * POINTS)
    weights += row * (LEVELS * POINTS)
    largest, divisor = 0.0, 1.0
    if SOFTMAX:
        largest, divisor = softmax_terms(weights, valid, LEVELS * POINTS, FLAT, DTYPE)
    channel = tl.arange(0, BLOCK)[None, :]
    real = valid[:, None] & (channel < CHANNELS)
    d = tl.load(grad + row[:, None] * CHANNELS + channel, mask=real, other=0.0).to(DTYPE)
    addend, units = d, 1.0
    if FIXED_POINT:
        addend, units = d * tl.load(factors + 2 * image), tl.load(factors + 2 * image + 1)

    # Collected in registers and written in whole rows: single columns would fill 4 of 32 bytes of a sector.
    for_weights = tl.zeros((ROWS, BLOCK_POINTS), DTYPE)
    for_x = tl.zeros((ROWS, BLOCK_POINTS), DTYPE)
    for_y = tl.zeros((ROWS, BLOCK_POINTS), DTYPE)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        level_start = map_start + tl.load(levels + 3 * level + 2) * pitch
        for first in range(0, POINTS, UNROLL):
            for step in tl.static_range(UNROLL):
                point = level * POINTS + first + step
                inside, y, x, v, u = _find_point(places + 2 * point, valid, height, width, DTYPE)
                weight = tl.load(weights + point, mask=valid, other=0.0).to(DTYPE)
                if SOFTMAX:
                    weight = tl.exp(weight - largest) / divisor
                product, along_x, along_y = sample_backward(
                    value + level_start,
                    total + level_start,
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
                for_weights = put(for_weights, point, product)
                for_x = put(for_x, point, width * weight * along_x)
                for_y = put(for_y, point, height * weight * along_y)

    if SOFTMAX:
        shares = softmax_tile(weights, valid, LEVELS * POINTS, BLOCK_POINTS, DTYPE)
        for_weights = shares * (for_weights - tl.sum(shares * for_weights, 1)[:, None])
    point = tl.arange(0, BLOCK_POINTS)[None, :]
    real = valid[:, None] & (point < LEVELS * POINTS)
    places = row[:, None] * (LEVELS * POINTS) + point
    tl.store(grad_weights + places, for_weights.to(grad_weights.dtype.element_ty), mask=real)
    pair = tl.join(for_x, for_y)
    places = 2 * places[:, :, None] + tl.arange(0, 2)[None, None, :]
    tl.store(grad_locations + places, pair.to(grad_locations.dtype.element_ty), mask=real[:, :, None])


@dataclass(frozen=True)
class _Call:
    grid: tuple[int]
    arguments: dict[str, Any]


def _prepare(
    task: Task, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, softmax: bool
) -> _Call:
    """Return what both kernels are called with besides tensors of single values."""
    batch, positions, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    for height, width in shapes:
        check_map_size("ms_deform_attn: value", height, width)
    tile = Tile.of(task, channels, levels * points, value)
    blocks = -(-queries // tile.rows)
    arguments = dict(
        levels=_level_table(shapes, value.device),
        heads=heads,
        queries=queries,
        blocks=blocks,
        positions=positions,
        ROWS=tile.rows,
        CHANNELS=channels,
        BLOCK=tile.channels,
        LEVELS=levels,
        POINTS=points,
        BLOCK_POINTS=tile.points,
        UNROLL=unrolled(points, 5),
        FLAT=unrolled(levels * points, 32),
        SOFTMAX=softmax,
        DTYPE=TYPES[computing_type(value, locations, weights)],
        num_warps=tile.num_warps,
    )
    return _Call((batch * blocks * heads,), arguments)


@lru_cache(maxsize=256)
def _level_table(shapes: Shapes, device: torch.device) -> Tensor:
    """Height, width and first pixel of each level, on the device.

    Read there, so that pictures of another size neither compile a kernel nor, a second time, wait for a copy.
    """
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += height * width
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int32, device=device)


def forward(
    value: Float[Tensor, "b s m d"],
    locations: Float[Tensor, "b q m l p 2"],
    weights: Float[Tensor, "b q m l p"],
    shapes: Shapes,
    softmax: bool,
) -> Float[Tensor, "b q mxd"]:
    """Compute `allsight.ops.ms_deform_attn`; all tensors on one GPU, or anywhere under TRITON_INTERPRET=1."""
    batch, _, heads, channels = value.shape
    out = value.new_empty(batch, locations.shape[1], heads * channels)
    if out.numel() == 0 or weights.numel() == 0:
        return out.zero_()
    call = _prepare("forward", value, locations, weights, shapes, softmax)
    tensors = dict(
        value=value.contiguous(), locations=locations.contiguous(), weights=weights.contiguous(), out=out
    )
    with on_device_of(value):
        _forward_kernel[call.grid](**tensors, **call.arguments)
    return out


def backward(
    grad: Float[Tensor, "b q mxd"],
    value: Float[Tensor, "b s m d"],
    locations: Float[Tensor, "b q m l p 2"],
    weights: Float[Tensor, "b q m l p"],
    shapes: Shapes,
    softmax: bool,
) -> tuple[Float[Tensor, "b s m d"], Float[Tensor, "b q m l p 2"], Float[Tensor, "b q m l p"]]:
    """Return the gradients of value, locations and weights (of the logits, with softmax), in their types.

    Equal bit for bit from run to run if `torch.are_deterministic_algorithms_enabled()`; see `MapGradient`.
    """
    grad_locations, grad_weights = locations.new_empty(locations.shape), weights.new_empty(weights.shape)
    if grad.numel() == 0 or weights.numel() == 0 or value.numel() == 0:
        return torch.zeros_like(value), grad_locations.zero_(), grad_weights.zero_()
    total = MapGradient.of(
        value,
        computing_type(value, locations, weights),
        grad,
        None if softmax else weights,
        # A query reaches an element of a level at most once with each of its points there.
        addends=locations.shape[1] * locations.shape[4],
    )
    task = "deterministic" if total.is_fixed_point else "backward"
    call = _prepare(task, value, locations, weights, shapes, softmax)
    tensors = dict(
        grad=grad.contiguous(),
        value=value.contiguous(),
        locations=locations.contiguous(),
        weights=weights.contiguous(),
        total=total.total,
        factors=total.factors,
        grad_locations=grad_locations,
        grad_weights=grad_weights,
    )
    with on_device_of(value):
        _backward_kernel[call.grid](**tensors, **call.arguments, FIXED_POINT=total.is_fixed_point)
    return total.result(value.dtype), grad_locations, grad_weights
