"""Places on a map need float32: beyond 16 pixels bfloat16 steps by 1/8 pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_float32(function: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
    """Call a function with autocast off and its tensors in float32; without autocast, as it stands.

    Args:
        function: What predicts places, such as `F.linear`.
        x: Its first argument, which tells the device.
        others: Its other arguments; None stays None.
    """
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return function(x, *others)
    with torch.autocast(kind, enabled=False):
        return function(x.float(), *(other if other is None else other.float() for other in others))
