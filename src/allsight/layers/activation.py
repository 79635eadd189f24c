"""Activations by name."""

from typing import Literal

from torch import nn

ActivationName = Literal["gelu", "silu", "relu"]

_MAKERS = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}


def make_activation(name: ActivationName) -> nn.Module:
    """Return the activation called `name`; "gelu" is the exact one (erf).

    Raises:
        ValueError: Unknown name.
    """
    if name not in _MAKERS:
        raise ValueError(f"activation: expected one of {', '.join(_MAKERS)}, got {name!r}")
    return _MAKERS[name]()
