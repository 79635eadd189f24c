"""BEVFormer: cameras around a vehicle to a bird's-eye-view map, with time, and what can be read off it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allsight.models.bevformer.detection import DetectionHead, DetectionOutputs, answers
    from allsight.models.bevformer.model import BEVFormer, BEVFormerOutputs
    from allsight.models.bevformer.network import BEVNetwork
    from allsight.models.bevformer.segmentation import MapConvHead, MapHead, MapOutputs, MapQueryHead
    from allsight.models.bevformer.stream import BEVStream
    from allsight.models.bevformer.trainable import TrainableBEVFormer

_HOME = {
    "detection": ("DetectionHead", "DetectionOutputs", "answers"),
    "model": ("BEVFormer", "BEVFormerOutputs"),
    "network": ("BEVNetwork",),
    "segmentation": ("MapConvHead", "MapHead", "MapOutputs", "MapQueryHead"),
    "stream": ("BEVStream",),
    "trainable": ("TrainableBEVFormer",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BEVFormer",
    "BEVFormerOutputs",
    "BEVNetwork",
    "BEVStream",
    "DetectionHead",
    "DetectionOutputs",
    "MapConvHead",
    "MapHead",
    "MapOutputs",
    "MapQueryHead",
    "TrainableBEVFormer",
    "answers",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"allsight.models.bevformer.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'allsight.models.bevformer' has no attribute {name!r}")
