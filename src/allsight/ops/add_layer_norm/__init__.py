"""Residual addition and the layer norm after it as one operator."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from allsight.ops._dispatch import Backend
from allsight.ops._numbers import check_number
from allsight.ops._registration import nothing, register
from allsight.ops._rows import check_addition
from allsight.ops.add_layer_norm.reference import add_layer_norm_reference

_NAME = "add_layer_norm"

ADD_LAYER_NORM = register(
    _NAME,
    tensors=("residual", "branch", "scale", "norm_weight", "norm_bias"),
    options="float eps",
    pack=lambda eps: (eps,),
    unpack=lambda eps: (eps,),
    output=lambda residual, *rest: residual.shape,
    outputs=2,
    reference=add_layer_norm_reference,
)


def add_layer_norm(
    residual: Float[Tensor, "*rows c"],
    branch: Float[Tensor, "*rows c"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    *,
    scale: Float[Tensor, " c"] | None = None,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "*rows c"], Float[Tensor, "*rows c"]]:
    """Compute `sum = residual + scale * branch` and its layer norm over the channels.

    For blocks that normalise before each branch (InternImage-T): the sum is what the next branch is added to,
    the norm is what it starts from. Taken apart, the sum is written, read again for its mean, and once more
    for the norm; together everything is read and written once.

    Args:
        residual: What the branch started from; any number of dimensions, channels last.
        branch: What the branch computed; of the same shape.
        norm_weight: Factor per channel after the normalisation.
        norm_bias: Shift per channel after the normalisation.
        scale: Factor per channel on what is added (layer scale).
        eps: Added to the variance over the channels.
        backend: Implementation; "auto" follows `use_backend`, then ALLSIGHT_BACKEND, else the fastest usable.

    Returns:
        The sum and its norm, in the type of `residual`; 16-bit ones are computed in float32.

    Raises:
        TypeError: A tensor or option is of the wrong kind.
        ValueError: A shape does not fit (the message names the argument, what was expected and what was
            given), or the backend asked for cannot serve the call.
    """
    check_addition(_NAME, residual, branch, norm_weight=norm_weight, norm_bias=norm_bias, scale=scale)
    check_number(_NAME, "eps", eps)
    factor = nothing(residual) if scale is None else scale
    return ADD_LAYER_NORM.run(backend, residual, branch, factor, norm_weight, norm_bias, float(eps))


__all__ = ["ADD_LAYER_NORM", "add_layer_norm"]
