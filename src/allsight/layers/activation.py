"""Activations by name."""

from typing import Literal

from torch import nn

ActivationName = Literal["gelu", "silu", "relu"]

_MAKERS: dict[ActivationName, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU}


def make_activation(name: ActivationName) -> nn.Module:
    """Return the activation called `name`; "gelu" is the exact one (erf).

    Raises:
        ValueError: Unknown name.
    """
    if name not in _MAKERS:
        raise ValueError(f"activation: expected one of {', '.join(_MAKERS)}, got {name!r}")
    return _MAKERS[name]()


def activation_name(module: nn.Module) -> ActivationName | None:
    """The name of what `make_activation` returned; None for anything else."""
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return next((name for name, kind in _MAKERS.items() if type(module) is kind), None)
