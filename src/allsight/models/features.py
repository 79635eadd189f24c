"""The backbone in a model, whatever stands around it."""

from __future__ import annotations

from torch import nn

from allsight.backbones import Backbone
from allsight.config import ConfigError


def backbone_of(model: nn.Module) -> Backbone:
    """The one backbone in a model, such as a `MultiHead` or the model of a predictor.

    Raises:
        ConfigError: There is none, or there are several; names them.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Backbone)}
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise ConfigError(
            f"{type(model).__name__}: expected one backbone in the model, found {names}; take one by hand"
        )
    return next(iter(found.values()))
