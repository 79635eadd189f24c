"""Bilinear sampling of channels-last maps: the part that the Triton kernels of all operators share.

Letters: n rows of a tile (output pixels or queries), d channels of one group or head, padded to BLOCK.
Functions are decorated with `no_type_check`, since type checkers know neither the language of kernels nor,
at run time, that their source is read rather than run.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
@no_type_check
def find_cell(local, base, size):
    """Split the coordinate base + local: whether it is in (-1, size), its left neighbour, the rest.

    Only `local` is rounded to floating point, so that errors do not grow with the size of a map. Coordinates
    that are not finite compare false; they and all others outside become harmless numbers.
    """
    inside = (local > -1 - base) & (local < size - base)
    local = tl.where(inside, local, 0.0)
    whole = tl.floor(local)
    return inside, base + whole.to(tl.int32), local - whole


@triton.jit
@no_type_check
def _corners(inside, y, x, height, width, pitch, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Element of the upper left corner [n, d], and which of the four corners lie on the map [n, 1 or d]."""
    channel = tl.arange(0, BLOCK)[None, :]
    element = (y * width + x).to(tl.int64)[:, None] * pitch + channel
    left, right = inside & (x >= 0), inside & (x + 1 < width)
    above, below = y >= 0, y + 1 < height
    m00, m01 = (above & left)[:, None], (above & right)[:, None]
    m10, m11 = (below & left)[:, None], (below & right)[:, None]
    if CHANNELS != BLOCK:
        real = channel < CHANNELS
        m00, m01, m10, m11 = m00 & real, m01 & real, m10 & real, m11 & real
    return element, m00, m01, m10, m11


@triton.jit
@no_type_check
def sample(
    plane, inside, y, x, v, u, weight, height, width, pitch, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Sample a map between the rows y, y + 1 and columns x, x + 1.

    Args:
        plane: First pixel of the image, at the group's first channel.
        inside, y, x: Which rows of the tile count, and their upper left corner [n].
        v, u: How far below and to the right of it [n], in the type of computing.
        weight: Factor on the sample [n].
        height, width: Size of the map.
        pitch: Elements from pixel to pixel, int64.

    Returns:
        weight * sample [n, d].
    """
    element, m00, m01, m10, m11 = _corners(inside, y, x, height, width, pitch, CHANNELS, BLOCK)
    corner = plane + element
    v00 = tl.load(corner, mask=m00, other=0.0).to(u.dtype)
    v01 = tl.load(corner + pitch, mask=m01, other=0.0).to(u.dtype)
    v10 = tl.load(corner + width * pitch, mask=m10, other=0.0).to(u.dtype)
    v11 = tl.load(corner + (width + 1) * pitch, mask=m11, other=0.0).to(u.dtype)
    top, bottom = weight * (1 - v), weight * v
    return (
        (top * (1 - u))[:, None] * v00
        + (top * u)[:, None] * v01
        + (bottom * (1 - u))[:, None] * v10
        + (bottom * u)[:, None] * v11
    )


@triton.jit
@no_type_check
def sample_backward(
    plane,
    total,
    grad,
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
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    FIXED_POINT: tl.constexpr,
):
    """Add the map's share of the gradient to `total`, a tensor like the map; arguments as in `sample`.

    Args:
        total: Where the pixel `plane` has its sums.
        grad: Gradient of the output [n, d].
        addend, units: What is added, before its factor for each corner, and fixed-point units in 1.

    Returns:
        Inner products over channels of `grad` with the sample, and with its derivatives by x and y, all
        without `weight` [n]. At whole coordinates the derivative is the one to the right and below.
    """
    element, m00, m01, m10, m11 = _corners(inside, y, x, height, width, pitch, CHANNELS, BLOCK)
    corner = plane + element
    d00 = tl.sum(grad * tl.load(corner, mask=m00, other=0.0).to(u.dtype), 1)
    d01 = tl.sum(grad * tl.load(corner + pitch, mask=m01, other=0.0).to(u.dtype), 1)
    d10 = tl.sum(grad * tl.load(corner + width * pitch, mask=m10, other=0.0).to(u.dtype), 1)
    d11 = tl.sum(grad * tl.load(corner + (width + 1) * pitch, mask=m11, other=0.0).to(u.dtype), 1)

    corner = total + element
    top, bottom = weight * (1 - v), weight * v
    _add(corner, (top * (1 - u))[:, None] * addend, m00, units, FIXED_POINT)
    _add(corner + pitch, (top * u)[:, None] * addend, m01, units, FIXED_POINT)
    _add(corner + width * pitch, (bottom * (1 - u))[:, None] * addend, m10, units, FIXED_POINT)
    _add(corner + (width + 1) * pitch, (bottom * u)[:, None] * addend, m11, units, FIXED_POINT)

    in_product = (1 - v) * ((1 - u) * d00 + u * d01) + v * ((1 - u) * d10 + u * d11)
    along_x = (1 - v) * (d01 - d00) + v * (d11 - d10)
    along_y = (1 - u) * (d10 - d00) + u * (d11 - d01)
    return in_product, along_x, along_y


@triton.jit
@no_type_check
def _add(places, addends, mask, units, FIXED_POINT: tl.constexpr):
    if FIXED_POINT:
        # The product is exact, since units are a power of two; the conversion cuts off less than one unit.
        addends = (addends * units).to(tl.int64)
    # Nothing else is published through these cells, so no order among them is needed.
    tl.atomic_add(places, addends, mask=mask, sem="relaxed")


@triton.jit
@no_type_check
def softmax_terms(places, valid, POINTS: tl.constexpr, FLAT: tl.constexpr, DTYPE: tl.constexpr):
    """Return the largest logit of each row and the sum of exponentials relative to it [n].

    Args:
        places: Where the first of POINTS logits of each row lies [n].
        FLAT: Logits a loop body; all of them, unless that makes the code too long.

    One logit after the other: a [n, points] tile, or a loop, would tie all that depends on the result to its
    own layout of rows over threads, and each use would cross shared memory. Second reads come from L1.
    """
    largest = tl.full(places.shape, float("-inf"), DTYPE)
    for first in range(0, POINTS, FLAT):
        for step in tl.static_range(FLAT):
            logit = tl.load(places + first + step, mask=valid, other=0.0).to(DTYPE)
            largest = tl.maximum(largest, logit, propagate_nan=tl.PropagateNan.ALL)
    total = tl.zeros(places.shape, DTYPE)
    for first in range(0, POINTS, FLAT):
        for step in tl.static_range(FLAT):
            logit = tl.load(places + first + step, mask=valid, other=0.0).to(DTYPE)
            total += tl.exp(logit - largest)
    return largest, total


@triton.jit
@no_type_check
def softmax_tile(places, valid, POINTS: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """Return all weights of the rows [n, BLOCK], zeros beyond POINTS; `places` as in `softmax_terms`."""
    point = tl.arange(0, BLOCK)[None, :]
    logits = tl.load(places[:, None] + point, mask=valid[:, None] & (point < POINTS), other=0.0).to(DTYPE)
    logits = tl.where(point < POINTS, logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
@no_type_check
def put(tile, point, column):
    """Replace the column `point` of a tile [n, points]."""
    return tl.where(tl.arange(0, tile.shape[1])[None, :] == point, column[:, None], tile)
