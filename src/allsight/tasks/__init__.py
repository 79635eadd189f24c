"""What is asked of a model and how the answers are scored. Importing this loads no concrete task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from allsight.config import Mixture
from allsight.tasks.base import TASKS, Metric, Reader, Split, Task, Transform, build_tasks

if TYPE_CHECKING:
    from allsight.tasks.bev_detection import BEVDetection
    from allsight.tasks.bev_segmentation import BEVSegmentation
    from allsight.tasks.classification import Classification
    from allsight.tasks.pretraining import Pretraining
    from allsight.tasks.segmentation import SemanticSegmentation

__all__ = [
    "TASKS",
    "BEVDetection",
    "BEVSegmentation",
    "Classification",
    "Metric",
    "Mixture",
    "Pretraining",
    "Reader",
    "SemanticSegmentation",
    "Split",
    "Task",
    "Transform",
    "build_tasks",
]

_LAZY = {
    "BEVDetection": "bev_detection",
    "BEVSegmentation": "bev_segmentation",
    "Classification": "classification",
    "Pretraining": "pretraining",
    "SemanticSegmentation": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"allsight.tasks.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'allsight.tasks' has no attribute {name!r}")
