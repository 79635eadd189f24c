"""What is asked of a model and how the answers are scored. Importing this loads no concrete task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from allsight.config import Mixture
from allsight.tasks.base import TASKS, Metric, Reader, Split, Task, Transform, build_tasks

if TYPE_CHECKING:
    from allsight.tasks.bev_detection import BEVDetection
    from allsight.tasks.bev_segmentation import BEVSegmentation
    from allsight.tasks.captioning import Captioning
    from allsight.tasks.classification import Classification
    from allsight.tasks.image_text_retrieval import ImageTextRetrieval, VideoTextRetrieval
    from allsight.tasks.language import Language
    from allsight.tasks.masked_language import MaskedLanguage
    from allsight.tasks.pretraining import Pretraining
    from allsight.tasks.segmentation import SemanticSegmentation
    from allsight.tasks.text_classification import TextClassification
    from allsight.tasks.text_retrieval import TextRetrieval
    from allsight.tasks.video_classification import VideoClassification
    from allsight.tasks.vqa import VQA

__all__ = [
    "TASKS",
    "VQA",
    "BEVDetection",
    "BEVSegmentation",
    "Captioning",
    "Classification",
    "ImageTextRetrieval",
    "Language",
    "MaskedLanguage",
    "Metric",
    "Mixture",
    "Pretraining",
    "Reader",
    "SemanticSegmentation",
    "Split",
    "Task",
    "TextClassification",
    "TextRetrieval",
    "Transform",
    "VideoClassification",
    "VideoTextRetrieval",
    "build_tasks",
]

_LAZY = {
    "BEVDetection": "bev_detection",
    "BEVSegmentation": "bev_segmentation",
    "Captioning": "captioning",
    "Classification": "classification",
    "Pretraining": "pretraining",
    "ImageTextRetrieval": "image_text_retrieval",
    "MaskedLanguage": "masked_language",
    "SemanticSegmentation": "segmentation",
    "Language": "language",
    "TextClassification": "text_classification",
    "TextRetrieval": "text_retrieval",
    "VideoClassification": "video_classification",
    "VideoTextRetrieval": "image_text_retrieval",
    "VQA": "vqa",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"allsight.tasks.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'allsight.tasks' has no attribute {name!r}")
