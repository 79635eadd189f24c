"""The nouns of allsight: samples, batches, queries, answers, camera geometry. No behaviour, no other room."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allsight.types.answers import (
        Answer,
        ClassScores,
        LabelMapAnswer,
        PairAnswer,
        PretrainingAnswer,
        TextAnswer,
        WordsAnswer,
        class_name,
    )
    from allsight.types.batches import Batch, CorruptSample, Costs, Outputs, State, Step
    from allsight.types.bev import BEVGrid, BEVSpec
    from allsight.types.boxes import Boxes3D
    from allsight.types.driving import BEVMap, BEVMapAnswer, Boxes3DAnswer, BoxNotes
    from allsight.types.errors import CheckpointError, DataError
    from allsight.types.features import FeatureSpec
    from allsight.types.geometry import CameraRig, MultiCameraBatch, inverse_affine, relative_pose
    from allsight.types.query import Among, Closed, Continuation, InBatch, Query, Segment, Vocabulary
    from allsight.types.questions import Question, kind_of
    from allsight.types.samples import (
        Crop,
        Image,
        LabelMap,
        Modality,
        Objects,
        Panoptic,
        Rig,
        Sample,
        Text,
        Video,
    )

_HOME = {
    "answers": (
        "Answer",
        "ClassScores",
        "LabelMapAnswer",
        "PairAnswer",
        "PretrainingAnswer",
        "TextAnswer",
        "WordsAnswer",
        "class_name",
    ),
    "batches": ("Batch", "CorruptSample", "Costs", "Outputs", "State", "Step"),
    "bev": ("BEVGrid", "BEVSpec"),
    "boxes": ("Boxes3D",),
    "driving": ("BEVMap", "BEVMapAnswer", "Boxes3DAnswer", "BoxNotes"),
    "errors": ("CheckpointError", "DataError"),
    "features": ("FeatureSpec",),
    "geometry": ("CameraRig", "MultiCameraBatch", "inverse_affine", "relative_pose"),
    "query": ("Among", "Closed", "Continuation", "InBatch", "Query", "Segment", "Vocabulary"),
    "questions": ("Question", "kind_of"),
    "samples": (
        "Crop",
        "Image",
        "LabelMap",
        "Modality",
        "Objects",
        "Panoptic",
        "Rig",
        "Sample",
        "Text",
        "Video",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Among",
    "Answer",
    "BEVGrid",
    "BEVMap",
    "BEVMapAnswer",
    "BEVSpec",
    "Batch",
    "BoxNotes",
    "Boxes3D",
    "Boxes3DAnswer",
    "CameraRig",
    "CheckpointError",
    "ClassScores",
    "Closed",
    "Continuation",
    "CorruptSample",
    "Costs",
    "Crop",
    "DataError",
    "FeatureSpec",
    "Image",
    "InBatch",
    "LabelMap",
    "LabelMapAnswer",
    "Modality",
    "MultiCameraBatch",
    "Objects",
    "Outputs",
    "PairAnswer",
    "Panoptic",
    "PretrainingAnswer",
    "Query",
    "Question",
    "Rig",
    "Sample",
    "Segment",
    "State",
    "Step",
    "Text",
    "TextAnswer",
    "Video",
    "Vocabulary",
    "WordsAnswer",
    "class_name",
    "inverse_affine",
    "kind_of",
    "relative_pose",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"allsight.types.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'allsight.types' has no attribute {name!r}")
