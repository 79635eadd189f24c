"""Whole networks. Importing this loads no concrete model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from allsight.models.base import (
    MODELS,
    Model,
    PlainModel,
    TaskModel,
    TaskOfModel,
    model_for_tasks,
    num_parameters,
)

if TYPE_CHECKING:
    from allsight.models.bevformer import BEVFormer
    from allsight.models.classifier import Classifier
    from allsight.models.m3i import M3I
    from allsight.models.multi_head import MultiHead
    from allsight.models.parts import Parts
    from allsight.models.uniperceiver import UniPerceiver

__all__ = [
    "M3I",
    "MODELS",
    "BEVFormer",
    "Classifier",
    "Model",
    "MultiHead",
    "Parts",
    "PlainModel",
    "TaskModel",
    "TaskOfModel",
    "UniPerceiver",
    "model_for_tasks",
    "num_parameters",
]

_LAZY = {
    "BEVFormer": "bevformer",
    "Classifier": "classifier",
    "M3I": "m3i",
    "MultiHead": "multi_head",
    "Parts": "parts",
    "UniPerceiver": "uniperceiver",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"allsight.models.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'allsight.models' has no attribute {name!r}")
