"""Scores that are built up batch by batch and merged across processes. State is numpy arrays and numbers."""

from allsight.tasks.metrics.captions import CaptionScores
from allsight.tasks.metrics.classification import ClassificationScores
from allsight.tasks.metrics.confusion import Confusion
from allsight.tasks.metrics.detection_scores import Detection3DScores
from allsight.tasks.metrics.map_iou import MapIoU
from allsight.tasks.metrics.pretraining import PretrainingScores
from allsight.tasks.metrics.retrieval import RetrievalScores
from allsight.tasks.metrics.segmentation import SegmentationScores
from allsight.tasks.metrics.top_k import TopK
from allsight.tasks.metrics.vqa import VQAScores
from allsight.tasks.metrics.words import WordScores

__all__ = [
    "CaptionScores",
    "ClassificationScores",
    "Confusion",
    "Detection3DScores",
    "MapIoU",
    "PretrainingScores",
    "RetrievalScores",
    "SegmentationScores",
    "TopK",
    "VQAScores",
    "WordScores",
]
