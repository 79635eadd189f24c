"""Losses as functions of tensors. They know no task and no network."""

from allsight.objectives.box_code_3d import (
    boxes_from_bevformer,
    boxes_to_bevformer,
    decode_boxes,
    encode_boxes,
)
from allsight.objectives.center_heatmap import center_loss, center_targets
from allsight.objectives.cross_entropy import (
    label_weight,
    pixel_cross_entropy,
    pixel_weight,
    soft_cross_entropy,
)
from allsight.objectives.detection_3d import detection_3d_losses, match_boxes, sigmoid_focal_loss
from allsight.objectives.feature_queue import FeatureQueue
from allsight.objectives.gathering import (
    encode_shared,
    equal_rows,
    gather_rows,
    group_candidates,
    num_ranks,
)
from allsight.objectives.posteriors import (
    IGNORED_LABEL,
    boltzmann_count,
    boltzmann_logits,
    boltzmann_loss,
    false_negatives,
)

__all__ = [
    "IGNORED_LABEL",
    "FeatureQueue",
    "boltzmann_count",
    "boltzmann_logits",
    "boltzmann_loss",
    "boxes_from_bevformer",
    "boxes_to_bevformer",
    "center_loss",
    "center_targets",
    "decode_boxes",
    "detection_3d_losses",
    "encode_boxes",
    "encode_shared",
    "equal_rows",
    "false_negatives",
    "gather_rows",
    "group_candidates",
    "label_weight",
    "match_boxes",
    "num_ranks",
    "pixel_cross_entropy",
    "pixel_weight",
    "sigmoid_focal_loss",
    "soft_cross_entropy",
]
