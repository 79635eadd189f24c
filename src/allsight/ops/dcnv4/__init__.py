"""DCNv4: the sampling of DCNv3 with weights that nothing bounds, served by the same implementations."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from allsight.ops._dispatch import Backend, Operator
from allsight.ops.dcnv3 import DCNV3, Geometry

DCNV4 = Operator("dcnv4", DCNV3.implementations)


def dcnv4(
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
    backend: Backend = "auto",
) -> Float[Tensor, "b ho wo c"]:
    """Sample `value` at offset grid points and mix the samples with `mask`, which is taken as it is.

    Points, coordinates and borders are those of `allsight.ops.dcnv3`; so is the point order. The official
    operator takes offsets and weights in one tensor; `allsight.layers.DCNv4` predicts them in the layout
    expected here from weights in the official layout.

    Args:
        value: Projected features, channels last; group g owns the g-th run of c / groups channels.
        offset: (x, y) displacement of every point in input pixels before `offset_scale`; last dimension is
            group, point, (x, y). A point whose coordinate is not finite contributes zero and passes no
            gradient to its offset.
        mask: Weight of every point, of any size and sign; last dimension is group, point.
        groups: Number of channel groups with their own offsets and weights.
        kernel_size: Points per axis; this and the next three are integers or (height, width) pairs.
        stride: Input pixels between neighbouring output pixels.
        padding: Pixels of zeros around the map.
        dilation: Input pixels between neighbouring kernel points.
        offset_scale: Factor on the regular grid and on the offsets.
        remove_center: Leave out the middle point of a square odd kernel; the others keep their order.
        backend: Implementation; "auto" follows `use_backend`, then ALLSIGHT_BACKEND, else the fastest usable.

    Returns:
        Mixed features [b, ho, wo, c] in the type of `value`, 16-bit ones computed in float32, with
        ho = (h + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1.

    Raises:
        TypeError: A tensor or option is of the wrong kind.
        ValueError: A shape or option does not fit (the message names the argument, what was expected and what
            was given), or the backend asked for cannot serve the call.

    Source: DCNv4, arXiv:2401.06197, section 3.1; coordinates as in
    OpenGVLab/DCNv4:DCNv4_op/src/cuda/dcnv4_im2col_cuda.cuh.
    """
    geometry = Geometry.of(
        groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, operator="dcnv4"
    )
    geometry.check(value, offset, mask)
    return DCNV4.run(backend, value, offset, mask, geometry, False)


__all__ = ["DCNV4", "dcnv4"]
