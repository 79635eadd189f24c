"""Depth-wise convolution, layer norm and activation as one operator."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from allsight.ops._dispatch import Backend
from allsight.ops._numbers import check_number
from allsight.ops._registration import nothing, register
from allsight.ops._rows import check_devices, check_vectors
from allsight.ops._tensors import check_tensors
from allsight.ops.depthwise_norm_act.reference import ACTIVATIONS, depthwise_norm_act_reference

_NAME = "depthwise_norm_act"

DEPTHWISE_NORM_ACT = register(
    _NAME,
    tensors=("x", "weight", "bias", "norm_weight", "norm_bias"),
    options="float eps, str act",
    pack=lambda eps, act: (eps, act),
    unpack=lambda eps, act: (eps, act),
    output=lambda x, *rest: x.shape,
    reference=depthwise_norm_act_reference,
)


def depthwise_norm_act(
    x: Float[Tensor, "b h w c"],
    weight: Float[Tensor, "c 1 k k"],
    bias: Float[Tensor, " c"] | None,
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    *,
    eps: float = 1e-6,
    act: Literal["gelu", "silu", "relu", "none"] = "gelu",
    backend: Backend = "auto",
) -> Float[Tensor, "b h w c"]:
    """Convolve every channel for itself, normalise over the channels, activate: one pass over the map.

    The three steps of DCNv3's branch that predicts offsets and weights. Taken one by one they write and read
    the map three times, and their arithmetic is little beside that.

    Args:
        x: Map, channels last.
        weight: As in `nn.Conv2d(c, c, k, padding=k // 2, groups=c)`; k is odd. No copy is made of a weight
            whose channels lie side by side in memory; any other layout is put in that order on each call.
        bias: Of the convolution.
        norm_weight: Factor per channel after the normalisation.
        norm_bias: Shift per channel after the normalisation.
        eps: Added to the variance over the channels of a pixel.
        act: Activation; "gelu" is the exact one (erf).
        backend: Implementation; "auto" follows `use_backend`, then ALLSIGHT_BACKEND, else the fastest usable.

    Returns:
        Map of the size and type of `x`, 16-bit ones computed in float32.

    Raises:
        TypeError: A tensor or option is of the wrong kind.
        ValueError: A shape or option does not fit (the message names the argument, what was expected and what
            was given), or the backend asked for cannot serve the call.
    """
    vectors = {"bias": bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
    given = {name: vector for name, vector in vectors.items() if name != "bias" or vector is not None}
    check_tensors(_NAME, x=x, weight=weight, **given)
    check_number(_NAME, "eps", eps)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"{_NAME}: x: expected [b, h, w, c] with h, w, c >= 1, got shape {tuple(x.shape)}")
    channels = x.shape[3]
    if (
        weight.ndim != 4
        or weight.shape[:2] != (channels, 1)
        or weight.shape[2] != weight.shape[3]
        or weight.shape[2] % 2 == 0
    ):
        raise ValueError(
            f"{_NAME}: weight: expected shape ({channels}, 1, k, k) with odd k, got {tuple(weight.shape)}"
        )
    check_vectors(_NAME, channels, "x", **vectors)
    check_devices(_NAME, "x", x, weight=weight, **vectors)
    if act not in ACTIVATIONS:
        raise ValueError(f"{_NAME}: act: expected one of {', '.join(ACTIVATIONS)}, got {act!r}")
    shift = nothing(x) if bias is None else bias
    return DEPTHWISE_NORM_ACT.run(backend, x, weight, shift, norm_weight, norm_bias, float(eps), act)


__all__ = ["DEPTHWISE_NORM_ACT", "depthwise_norm_act"]
