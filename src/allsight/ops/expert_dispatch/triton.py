"""Expert dispatch as Triton kernels: `forward` and `backward` of the operator, without autograd.

A choice is one expert of one token. Choices are sorted by expert, and cut into tiles of one expert
each; a program multiplies a tile by a block of its expert's matrix. Results lie apart, one row a choice, and
are then summed token by token, so that no two programs write to one place and every run gives the same bits.
How many tiles there are is known on the device alone: the host never waits for it, and launches as many
programs as there can be.

Products are summed in float32 (float64 for float64); of float32 tensors they are exact, unless
`torch.set_float32_matmul_precision` allows TF32. Of 16-bit tensors, gradients of weights take gate times
gradient rounded to 16 bits, all else is rounded once.

Letters: n tokens, k experts a token, m choices, e experts, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

from allsight.ops._triton import computing_type, is_interpreted, on_device_of, power_of_two
from allsight.ops._triton_sampling import TYPES

# The least that a matrix unit takes, and as many rows and columns as keep a tile in registers.
_LEAST, _MOST = 16, 64
_BLOCK_INNER = 32


@triton.jit
@no_type_check
def _product_kernel(
    rows,
    matrices,
    laid,
    order,
    owners,
    firsts,
    ends,
    K: tl.constexpr,
    INNER: tl.constexpr,
    OUTER: tl.constexpr,
    PITCH_INNER: tl.constexpr,
    PITCH_OUTER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    OPERAND: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """laid[choice] = rows[its token] times the matrix of its expert, for one tile and a block of columns."""
    tile = tl.program_id(0)
    first, end = tl.load(firsts + tile), tl.load(ends + tile)
    if first < end:
        place = first + tl.arange(0, BLOCK_ROWS)
        valid = place < end
        choice = tl.load(order + place, mask=valid, other=0)
        column = tl.program_id(1) * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)
        real = column < OUTER
        source = rows + (choice // K)[:, None] * INNER
        matrix = matrices + tl.load(owners + tile) * INNER * OUTER + column[None, :] * PITCH_OUTER
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUTER), DTYPE)
        for start in range(0, INNER, BLOCK_INNER):
            i = start + tl.arange(0, BLOCK_INNER)
            a = tl.load(source + i[None, :], mask=valid[:, None] & (i < INNER)[None, :], other=0.0)
            b = tl.load(
                matrix + i[:, None] * PITCH_INNER, mask=(i < INNER)[:, None] & real[None, :], other=0.0
            )
            total = tl.dot(a.to(OPERAND), b.to(OPERAND), total, input_precision=PRECISION, out_dtype=DTYPE)
        places = laid + choice[:, None] * OUTER + column[None, :]
        tl.store(places, total, mask=valid[:, None] & real[None, :])


@triton.jit(do_not_specialize=["tokens"])
@no_type_check
def _mix_kernel(
    laid,
    bias,
    experts,
    gates,
    out,
    tokens,
    K: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """out[token] = sum over its choices of gate (laid + bias); rows of choices with gate 0 are not read."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    valid, real = token < tokens, column < CHANNELS
    total = tl.zeros((BLOCK_ROWS, BLOCK), DTYPE)
    for j in range(0, K):
        choice = token * K + j
        gate = tl.load(gates + choice, mask=valid, other=0.0).to(DTYPE)
        used = valid & (gate != 0.0)
        is_there = used[:, None] & real
        row = tl.load(laid + choice[:, None] * CHANNELS + column, mask=is_there, other=0.0)
        if HAS_BIAS:
            expert = tl.load(experts + choice, mask=used, other=0)
            row += tl.load(bias + expert[:, None] * CHANNELS + column, mask=is_there, other=0.0).to(DTYPE)
        total += tl.where(used, gate, 0.0)[:, None] * row
    places = out + token[:, None] * CHANNELS + column
    tl.store(places, total.to(out.dtype.element_ty), mask=valid[:, None] & real)


@triton.jit(do_not_specialize=["choices"])
@no_type_check
def _gate_kernel(
    x,
    laid,
    grad,
    bias,
    experts,
    grad_gates,
    choices,
    K: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """grad_gates[choice] = x . laid + grad . bias; laid: the gradient sent back through the expert."""
    choice = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    valid = choice < choices
    token = (choice // K)[:, None]
    expert = tl.load(experts + choice, mask=valid, other=0)[:, None]
    total = tl.zeros((BLOCK_ROWS,), DTYPE)
    for start in range(0, CHANNELS, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        real = valid[:, None] & (column < CHANNELS)
        own = tl.load(x + token * CHANNELS + column, mask=real, other=0.0).to(DTYPE)
        total += tl.sum(own * tl.load(laid + choice[:, None] * CHANNELS + column, mask=real, other=0.0), 1)
    for start in range(0, OUTER, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        real = valid[:, None] & (column < OUTER)
        given = tl.load(grad + token * OUTER + column, mask=real, other=0.0).to(DTYPE)
        total += tl.sum(given * tl.load(bias + expert * OUTER + column, mask=real, other=0.0).to(DTYPE), 1)
    tl.store(grad_gates + choice, total.to(grad_gates.dtype.element_ty), mask=valid)


@triton.jit
@no_type_check
def _weight_kernel(
    grad,
    x,
    gates,
    order,
    starts,
    ends,
    grad_weight,
    grad_bias,
    K: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of one expert's gradients: the sum over its choices of gate grad x^T, and of gate grad."""
    expert = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK_OUTER, BLOCK), DTYPE)
    shift = tl.zeros((BLOCK_OUTER,), DTYPE)
    first, end = tl.load(starts + expert), tl.load(ends + expert)
    while first < end:
        place = first + tl.arange(0, BLOCK_ROWS)
        valid = place < end
        choice = tl.load(order + place, mask=valid, other=0)
        token = choice // K
        gate = tl.load(gates + choice, mask=valid, other=0.0).to(DTYPE)
        places = grad + token[None, :] * OUTER + o[:, None]
        given = (
            tl.load(places, mask=valid[None, :] & (o < OUTER)[:, None], other=0.0).to(DTYPE) * gate[None, :]
        )
        places = x + token[:, None] * CHANNELS + column[None, :]
        own = tl.load(places, mask=valid[:, None] & (column < CHANNELS)[None, :], other=0.0)
        a, b = given.to(own.dtype).to(OPERAND), own.to(OPERAND)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=DTYPE)
        shift += tl.sum(given, 1)
        first += BLOCK_ROWS
    places = grad_weight + expert * OUTER * CHANNELS + o[:, None] * CHANNELS + column[None, :]
    real = (o < OUTER)[:, None] & (column < CHANNELS)[None, :]
    tl.store(places, total.to(grad_weight.dtype.element_ty), mask=real)
    if tl.program_id(2) == 0:
        tl.store(grad_bias + expert * OUTER + o, shift.to(grad_bias.dtype.element_ty), mask=o < OUTER)


@dataclass(frozen=True)
class _Sorted:
    """Choices in the order of their experts.

    Attributes:
        order: Number of each choice [m]; those left out come last.
        starts, ends: Which part of `order` each expert has [e].
        owners, tile_starts, tile_ends: Expert of each tile, and its part of `order`; empty for spare tiles.
        rows: Choices of a tile at most.
    """

    order: Tensor
    starts: Tensor
    ends: Tensor
    owners: Tensor
    tile_starts: Tensor
    tile_ends: Tensor
    rows: int

    @classmethod
    def of(cls, experts: Int64[Tensor, "n k"], num_experts: int, gates: Tensor | None = None) -> _Sorted:
        """Sort; with `gates`, choices whose gate is 0 are left out."""
        flat = experts.flatten()
        rows = min(_MOST, max(_LEAST, power_of_two(len(flat) // num_experts)))
        if gates is not None:
            flat = flat.masked_fill(gates.flatten() == 0, num_experts)
        found, order = flat.sort(stable=True)
        numbers = torch.arange(num_experts, device=flat.device)
        starts, ends = (torch.searchsorted(found, numbers, right=right) for right in (False, True))
        tiles = (ends - starts + rows - 1) // rows
        last = tiles.cumsum(0)
        tile = torch.arange(-(-len(flat) // rows) + num_experts, device=flat.device)
        owners = torch.searchsorted(last, tile, right=True).clamp_max(num_experts - 1)
        # Spare tiles begin past the end of the last expert.
        tile_starts = starts[owners] + (tile - (last - tiles)[owners]) * rows
        tile_ends = torch.minimum(tile_starts + rows, ends[owners])
        return cls(order, starts, ends, owners, tile_starts, tile_ends, rows)


def forward(
    x: Float[Tensor, "n c"],
    weight: Float[Tensor, "e out c"],
    bias: Float[Tensor, "e out"],
    experts: Int64[Tensor, "n k"],
    gates: Float[Tensor, "n k"],
) -> Float[Tensor, "n out"]:
    """Compute `allsight.ops.expert_dispatch`; on one GPU, or anywhere under TRITON_INTERPRET=1."""
    out = x.new_zeros(len(x), weight.shape[1])
    if experts.numel() == 0 or out.numel() == 0:
        return out
    x, weight, bias, experts, gates = (t.contiguous() for t in (x, weight, bias, experts, gates))
    with on_device_of(x):
        laid = _products(x, weight, _Sorted.of(experts, len(weight), gates), experts.shape[1], back=False)
        _mix(laid, bias, experts, gates, out)
    return out


def backward(
    grad: Float[Tensor, "n out"],
    x: Float[Tensor, "n c"],
    weight: Float[Tensor, "e out c"],
    bias: Float[Tensor, "e out"],
    experts: Int64[Tensor, "n k"],
    gates: Float[Tensor, "n k"],
) -> tuple[Tensor, ...]:
    """Return the gradients of all tensors, in their types; the choice itself has none."""
    found = [
        torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (x, weight, bias, experts, gates)
    ]
    grad_x, grad_weight, grad_bias, _, grad_gates = found
    if experts.numel() == 0 or grad.numel() == 0:
        return tuple(found)
    grad, x, weight, bias, experts, gates = (t.contiguous() for t in (grad, x, weight, bias, experts, gates))
    (tokens, k), (num_experts, outer, channels) = experts.shape, weight.shape
    compute = TYPES[computing_type(x, gates)]
    # A gate of 0 has a gradient all the same, so that no choice is left out here.
    choices = _Sorted.of(experts, num_experts)
    with on_device_of(x):
        laid = _products(grad, weight, choices, k, back=True)
        if channels:
            _mix(laid, None, experts, gates, grad_x)
        _gate_kernel[(triton.cdiv(tokens * k, _LEAST),)](
            x,
            laid,
            grad,
            bias,
            experts,
            grad_gates,
            tokens * k,
            K=k,
            CHANNELS=channels,
            OUTER=outer,
            BLOCK_ROWS=_LEAST,
            BLOCK=_block(max(channels, outer)),
            DTYPE=compute,
        )
        blocks = _block(outer), _block(channels)
        _weight_kernel[
            (num_experts, triton.cdiv(outer, blocks[0]), max(1, triton.cdiv(channels, blocks[1])))
        ](
            grad,
            x,
            gates,
            choices.order,
            choices.starts,
            choices.ends,
            grad_weight,
            grad_bias,
            K=k,
            CHANNELS=channels,
            OUTER=outer,
            BLOCK_ROWS=_BLOCK_INNER,
            BLOCK_OUTER=blocks[0],
            BLOCK=blocks[1],
            OPERAND=_operand(x),
            DTYPE=compute,
            PRECISION=_precision(),
        )
    return tuple(found)


def _products(rows: Tensor, weight: Tensor, choices: _Sorted, k: int, *, back: bool) -> Tensor:
    """The row of each choice times its expert's matrix, or `back` through it [m, out or c]."""
    _, outer, inner = weight.shape
    pitches = 1, inner
    if back:
        outer, inner, pitches = inner, outer, pitches[::-1]
    dtype = computing_type(rows)
    laid = rows.new_empty(len(choices.order), outer, dtype=dtype)
    block = _block(outer)
    if outer:
        _product_kernel[(len(choices.owners), triton.cdiv(outer, block))](
            rows,
            weight,
            laid,
            choices.order,
            choices.owners,
            choices.tile_starts,
            choices.tile_ends,
            K=k,
            INNER=inner,
            OUTER=outer,
            PITCH_INNER=pitches[0],
            PITCH_OUTER=pitches[1],
            BLOCK_ROWS=choices.rows,
            BLOCK_INNER=_BLOCK_INNER,
            BLOCK_OUTER=block,
            OPERAND=_operand(rows),
            DTYPE=TYPES[dtype],
            PRECISION=_precision(),
        )
    return laid


def _mix(laid: Tensor, bias: Tensor | None, experts: Tensor, gates: Tensor, out: Tensor) -> None:
    """Sum the rows of each token's choices into `out`."""
    (tokens, channels), block = out.shape, _block(out.shape[1])
    _mix_kernel[(triton.cdiv(tokens, _LEAST), triton.cdiv(channels, block))](
        laid,
        gates if bias is None else bias,
        experts,
        gates,
        out,
        tokens,
        K=experts.shape[1],
        CHANNELS=channels,
        BLOCK_ROWS=_LEAST,
        BLOCK=block,
        HAS_BIAS=bias is not None,
        DTYPE=TYPES[computing_type(laid, gates)],
    )


def _block(channels: int) -> int:
    return min(_MOST, max(_LEAST, power_of_two(channels)))


def _operand(tensor: Tensor) -> tl.dtype:
    """What factors of a product are given as. The interpreter would multiply the bits of bfloat16 numbers."""
    if tensor.dtype == torch.bfloat16 and not is_interpreted():
        return tl.bfloat16
    return tl.float16 if tensor.dtype == torch.float16 else TYPES[computing_type(tensor)]


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
