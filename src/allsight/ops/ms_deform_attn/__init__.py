"""Multi-scale deformable attention of Deformable-DETR, its core without weights."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from allsight.ops._dispatch import Backend
from allsight.ops._numbers import check_truth
from allsight.ops._registration import register
from allsight.ops.ms_deform_attn._shapes import Shapes, as_shapes, check
from allsight.ops.ms_deform_attn.reference import ms_deform_attn_reference


def _unpack(sizes: Sequence[int], softmax: bool) -> tuple[Shapes, bool]:
    return tuple(zip(sizes[::2], sizes[1::2], strict=True)), softmax


MS_DEFORM_ATTN = register(
    "ms_deform_attn",
    tensors=("value", "sampling_locations", "attention_weights"),
    options="SymInt[] sizes, bool softmax",
    pack=lambda shapes, softmax: ([size for shape in shapes for size in shape], softmax),
    unpack=_unpack,
    output=lambda value, locations, weights, shapes, softmax: (
        value.shape[0],
        locations.shape[1],
        value.shape[2] * value.shape[3],
    ),
    reference=ms_deform_attn_reference,
    backends=("cpu", "triton"),
)


def ms_deform_attn(
    value: Float[Tensor, "b s m d"],
    spatial_shapes: Sequence[tuple[int, int]] | Int[Tensor, "l 2"],
    sampling_locations: Float[Tensor, "b q m l p 2"],
    attention_weights: Float[Tensor, "b q m l p"],
    *,
    softmax: bool = False,
    backend: Backend = "auto",
) -> Float[Tensor, "b q mxd"]:
    """Sample maps of several sizes at free points and mix the samples per query and head.

    A point at (x, y) reads level l at `x * width - 0.5`, `y * height - 0.5`, in pixels whose centers are
    integers: 0 and 1 are the outer edges of the map. Samples are bilinear; everything outside the map is
    zero, so a point counts if its pixel coordinates lie within -1 < x < width and -1 < y < height.

    Args:
        value: Projected features of all levels one after the other, each row by row; s is the sum of their
            pixels, m the heads, d the channels per head.
        spatial_shapes: (height, width) of every level. A tensor is accepted and read once, which waits for
            its device; under `torch.compile` and in an export pass integers.
        sampling_locations: (x, y) of every point, 0 to 1 inside the map. A point whose coordinate is not
            finite contributes zero and passes no gradient to its location. Its type may be wider than that of
            `value`: 16 bits are too few for a place.
        attention_weights: Weight of every point.
        softmax: Normalise `attention_weights` over all points of all levels, inside the operator.
        backend: Implementation; "auto" follows `use_backend`, then ALLSIGHT_BACKEND, else the fastest usable.

    Returns:
        Mixed features [b, q, m * d] in the type of `value`, 16-bit ones computed in float32.

    Raises:
        TypeError: A tensor or option is of the wrong kind.
        ValueError: A shape does not fit (the message names the argument, what was expected and what was
            given), or the backend asked for cannot serve the call.

    Source: Deformable DETR, arXiv:2010.04159, eq. 3; layout as in
    fundamentalvision/Deformable-DETR:models/ops/functions/ms_deform_attn_func.py.
    """
    shapes = as_shapes(spatial_shapes)
    check_truth("ms_deform_attn", "softmax", softmax)
    check(value, shapes, sampling_locations, attention_weights)
    return MS_DEFORM_ATTN.run(backend, value, sampling_locations, attention_weights, shapes, softmax)


__all__ = ["MS_DEFORM_ATTN", "Shapes", "as_shapes", "ms_deform_attn"]
