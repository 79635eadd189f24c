"""DCNv3: deformable convolution of InternImage, its core without weights."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from allsight.ops._dispatch import Backend
from allsight.ops._numbers import check_truth
from allsight.ops._registration import register
from allsight.ops.dcnv3._geometry import Geometry
from allsight.ops.dcnv3.points import sampling_points
from allsight.ops.dcnv3.reference import dcnv3_reference


def _unpack(pattern: Sequence[int], offset_scale: float, softmax: bool) -> tuple[Geometry, bool]:
    return Geometry.of_pattern(pattern, offset_scale), softmax


DCNV3 = register(
    "dcnv3",
    tensors=("value", "offset", "mask"),
    options="int[] pattern, float offset_scale, bool softmax",
    pack=lambda geometry, softmax: (geometry.pattern, geometry.offset_scale, softmax),
    unpack=_unpack,
    output=lambda value, offset, mask, geometry, softmax: (*offset.shape[:3], value.shape[3]),
    reference=dcnv3_reference,
    backends=("cpu", "triton"),
)


def dcnv3(
    value: Float[Tensor, "b h w c"],
    offset: Float[Tensor, "b ho wo gpx2"],
    mask: Float[Tensor, "b ho wo gp"],
    *,
    groups: int,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    offset_scale: float | int = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
    backend: Backend = "auto",
) -> Float[Tensor, "b ho wo c"]:
    """Sample `value` at offset grid points and mix the samples with `mask`, group by group.

    Point p = column * kernel_height + row of the kernel reads the map at
    `x = ox * stride - padding + r + offset_scale * (column * dilation - r + dx)` with
    `r = dilation * (kernel_width - 1) // 2`, likewise y, in pixels whose centers are integers. Samples are
    bilinear; everything outside the map is zero, so a point counts if -1 < x < w and -1 < y < h.

    Args:
        value: Projected features, channels last; group g owns the g-th run of c / groups channels.
        offset: (x, y) displacement of every point in input pixels before `offset_scale`; last dimension is
            group, point, (x, y). A point whose coordinate is not finite contributes zero and passes no
            gradient to its offset.
        mask: Weight of every point; last dimension is group, point.
        groups: Number of channel groups with their own offsets and weights.
        kernel_size: Points per axis; this and the next three are integers or (height, width) pairs.
        stride: Input pixels between neighbouring output pixels.
        padding: Pixels of zeros around the map.
        dilation: Input pixels between neighbouring kernel points.
        offset_scale: Factor on the regular grid and on the offsets.
        remove_center: Leave out the middle point of a square odd kernel; the others keep their order.
        softmax: Normalise `mask` over the points inside the operator.
        backend: Implementation; "auto" follows `use_backend`, then ALLSIGHT_BACKEND, else the fastest usable.

    Returns:
        Mixed features [b, ho, wo, c] in the type of `value`, 16-bit ones computed in float32, with
        ho = (h + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1.

    Raises:
        TypeError: A tensor or option is of the wrong kind.
        ValueError: A shape or option does not fit (the message names the argument, what was expected and what
            was given), or the backend asked for cannot serve the call.

    Source: InternImage, arXiv:2211.05778, eq. 2; point order and offset_scale as in
    OpenGVLab/InternImage:classification/ops_dcnv3/functions/dcnv3_func.py.
    """
    geometry = Geometry.of(groups, kernel_size, stride, padding, dilation, offset_scale, remove_center)
    check_truth("dcnv3", "softmax", softmax)
    geometry.check(value, offset, mask)
    return DCNV3.run(backend, value, offset, mask, geometry, softmax)


__all__ = ["DCNV3", "Geometry", "dcnv3", "sampling_points"]
