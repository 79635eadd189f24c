"""An optimiser's state under the names of the model's parameters, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Formats = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Key -> shape and number format of stored tensors."""


def optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], state: Mapping[Any, Mapping[str, Any]]
) -> Tensors:
    """`optim/PARAMETER/ENTRY` -> the tensor that the optimiser holds."""
    return {
        f"optim/{name}/{entry}": value
        for name, parameter in parameters.items()
        for entry, value in state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def make_room(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], stored: Formats
) -> None:
    """Room for what was stored. A parameter that no task had used then has no state, and gets none.

    Args:
        stored: Of `PARAMETER/ENTRY`.
    """
    optimizer.state.clear()
    for key, (shape, dtype) in stored.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        # Counters stay on the CPU, where the optimisers keep them; all else is sharded as the parameter.
        is_like = shape == parameter.shape and len(shape) > 0
        room = torch.empty_like(parameter, dtype=dtype) if is_like else torch.empty(shape, dtype=dtype)
        optimizer.state[parameter][entry] = room.detach()
