"""Places on a map need float32: beyond 16 pixels bfloat16 steps by 1/8 pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_float32(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call a function with autocast off and its tensors in float32; without autocast, as it stands.

    Args:
        function: What predicts places, such as `F.linear`.
        tensors: Its arguments, the first of which tells the device.
    """
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return function(*tensors)
    with torch.autocast(kind, enabled=False):
        return function(*(tensor.float() for tensor in tensors))
