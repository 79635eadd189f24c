"""The backbone in a model, whatever stands around it."""

from __future__ import annotations

from torch import nn

from allsight.backbones._base import Backbone
from allsight.config import ConfigError


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone of a model, such as a `MultiHead`, an `M3I`, or the model of a predictor.

    It is what the model itself calls `backbone`, beside which there may be slow copies and teachers; else the
    only one in it.

    Raises:
        ConfigError: There is none, or there are several; names them.
    """
    own = getattr(model, "backbone", None)
    if isinstance(own, Backbone):
        return own
    found = {name: module for name, module in model.named_modules() if isinstance(module, Backbone)}
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise ConfigError(
            f"{type(model).__name__}: expected one backbone in the model, found {names}; take one by hand"
        )
    return next(iter(found.values()))
