"""The backbone in a model, whatever stands around it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from allsight.backbones import Backbone
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


@runtime_checkable
class CaptionSpace(Protocol):
    """A model that puts pictures and captions into one space, in which directions are compared."""

    def embed_pictures(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def embed_captions(
        self, tokens: Int64[Tensor, "k t"], is_token: Bool[Tensor, "k t"]
    ) -> Float[Tensor, "k d"]: ...
