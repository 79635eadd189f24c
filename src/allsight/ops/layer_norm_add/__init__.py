"""Layer norm and the residual addition after it as one operator."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from allsight.ops._dispatch import Backend
from allsight.ops._numbers import check_number
from allsight.ops._registration import nothing, register
from allsight.ops._rows import check_addition
from allsight.ops.layer_norm_add.reference import layer_norm_add_reference

_NAME = "layer_norm_add"

LAYER_NORM_ADD = register(
    _NAME,
    tensors=("residual", "branch", "scale", "norm_weight", "norm_bias"),
    options="float eps",
    pack=lambda eps: (eps,),
    unpack=lambda eps: (eps,),
    output=lambda residual, *rest: residual.shape,
    reference=layer_norm_add_reference,
)


def layer_norm_add(
    residual: Float[Tensor, "*rows c"],
    branch: Float[Tensor, "*rows c"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    *,
    scale: Float[Tensor, " c"] | None = None,
    eps: float = 1e-6,
    backend: Backend = "auto",
) -> Float[Tensor, "*rows c"]:
    """Normalise a branch over the channels and add it to a residual: `residual + scale * norm(branch)`.

    For blocks that normalise after each branch (InternImage-S to XL and G, and H, which also normalises
    before). Taken apart, the norm and its product with `scale` are maps of their own that are written and
    read again; together only the sum is written.

    Args:
        residual: What the branch started from; any number of dimensions, channels last.
        branch: What the branch computed; of the same shape.
        norm_weight: Factor per channel after the normalisation.
        norm_bias: Shift per channel after the normalisation.
        scale: Factor per channel on what is added (layer scale).
        eps: Added to the variance over the channels.
        backend: Implementation; "auto" follows `use_backend`, then ALLSIGHT_BACKEND, else the fastest usable.

    Returns:
        The sum, in the type of `residual`; 16-bit ones are computed in float32.

    Raises:
        TypeError: A tensor or option is of the wrong kind.
        ValueError: A shape does not fit (the message names the argument, what was expected and what was
            given), or the backend asked for cannot serve the call.
    """
    check_addition(_NAME, residual, branch, norm_weight=norm_weight, norm_bias=norm_bias, scale=scale)
    check_number(_NAME, "eps", eps)
    factor = nothing(residual) if scale is None else scale
    return LAYER_NORM_ADD.run(backend, residual, branch, factor, norm_weight, norm_bias, float(eps))


__all__ = ["LAYER_NORM_ADD", "layer_norm_add"]
