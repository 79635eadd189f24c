"""Depth-wise convolution, layer norm and activation in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def depthwise_norm_act_reference(
    x: Float[Tensor, "b h w c"],
    weight: Float[Tensor, "c 1 k k"],
    bias: Float[Tensor, " c_or_none"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    eps: float,
    act: str,
) -> Float[Tensor, "b h w c"]:
    """Compute `allsight.ops.depthwise_norm_act`; a bias without values is none.

    16-bit inputs are computed in float32 and rounded once at the end.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    for tensor in (weight, bias, norm_weight, norm_bias):
        dtype = torch.promote_types(dtype, tensor.dtype)
    channels, kernel = x.shape[3], weight.shape[3]
    with torch.autocast(x.device.type, enabled=False):
        shift = bias.to(dtype) if bias.numel() else None
        seen = x.to(dtype).permute(0, 3, 1, 2)
        y = F.conv2d(seen, weight.to(dtype), shift, padding=kernel // 2, groups=channels)
        y = F.layer_norm(y.permute(0, 2, 3, 1), (channels,), norm_weight.to(dtype), norm_bias.to(dtype), eps)
        return ACTIVATIONS[act](y).to(x.dtype)
