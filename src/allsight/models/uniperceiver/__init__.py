"""Uni-Perceiver: one encoder and one likelihood for many tasks, dense or with Conditional MoE."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allsight.models.uniperceiver.encoder import Encoder
    from allsight.models.uniperceiver.model import UniPerceiver
    from allsight.models.uniperceiver.prompts import PromptSettings
    from allsight.models.uniperceiver.router import ExpertSettings

_HOME = {
    "encoder": ("Encoder",),
    "model": ("UniPerceiver",),
    "prompts": ("PromptSettings",),
    "router": ("ExpertSettings",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["Encoder", "ExpertSettings", "PromptSettings", "UniPerceiver"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"allsight.models.uniperceiver.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'allsight.models.uniperceiver' has no attribute {name!r}")
