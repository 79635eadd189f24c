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
from allsight.objectives.map_masks import map_mask_losses

__all__ = [
    "boxes_from_bevformer",
    "boxes_to_bevformer",
    "center_loss",
    "center_targets",
    "decode_boxes",
    "detection_3d_losses",
    "encode_boxes",
    "label_weight",
    "map_mask_losses",
    "match_boxes",
    "pixel_cross_entropy",
    "pixel_weight",
    "sigmoid_focal_loss",
    "soft_cross_entropy",
]
