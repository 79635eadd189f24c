"""Residual addition and the layer norm after it in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def add_layer_norm_reference(
    residual: Float[Tensor, "*rows c"],
    branch: Float[Tensor, "*rows c"],
    scale: Float[Tensor, " c_or_none"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    eps: float,
) -> tuple[Float[Tensor, "*rows c"], Float[Tensor, "*rows c"]]:
    """Compute `allsight.ops.add_layer_norm`; a scale without values is none.

    16-bit inputs are computed in float32 and rounded once at the end.
    """
    dtype = torch.promote_types(residual.dtype, torch.float32)
    for tensor in (branch, scale, norm_weight, norm_bias):
        dtype = torch.promote_types(dtype, tensor.dtype)
    with torch.autocast(residual.device.type, enabled=False):
        total = residual.to(dtype) + _scaled(branch.to(dtype), scale)
        normalised = F.layer_norm(total, total.shape[-1:], norm_weight.to(dtype), norm_bias.to(dtype), eps)
        return total.to(residual.dtype), normalised.to(residual.dtype)


def _scaled(branch: Float[Tensor, "*rows c"], scale: Float[Tensor, " c_or_none"]) -> Float[Tensor, "*rows c"]:
    return branch * scale.to(branch.dtype) if scale.numel() else branch
