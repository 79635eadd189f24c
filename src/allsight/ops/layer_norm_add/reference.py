"""Layer norm and the residual addition after it in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def layer_norm_add_reference(
    residual: Float[Tensor, "*rows c"],
    branch: Float[Tensor, "*rows c"],
    scale: Float[Tensor, " c_or_none"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    eps: float,
) -> Float[Tensor, "*rows c"]:
    """Compute `allsight.ops.layer_norm_add`; a scale without values is none.

    16-bit inputs are computed in float32 and rounded once at the end.
    """
    dtype = torch.promote_types(residual.dtype, torch.float32)
    for tensor in (branch, scale, norm_weight, norm_bias):
        dtype = torch.promote_types(dtype, tensor.dtype)
    with torch.autocast(residual.device.type, enabled=False):
        branch = branch.to(dtype)
        branch = F.layer_norm(branch, branch.shape[-1:], norm_weight.to(dtype), norm_bias.to(dtype), eps)
        total = residual.to(dtype) + _scaled(branch, scale)
        return total.to(residual.dtype)


def _scaled(branch: Float[Tensor, "*rows c"], scale: Float[Tensor, " c_or_none"]) -> Float[Tensor, "*rows c"]:
    return branch * scale.to(branch.dtype) if scale.numel() else branch
