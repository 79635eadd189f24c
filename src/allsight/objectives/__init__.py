"""Losses as functions of tensors. They know no task and no network."""

from allsight.objectives.bernoulli import bernoulli_loss
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
from allsight.objectives.decorrelation import (
    covariance_penalty,
    covariance_term,
    cross_correlation_loss,
    second_moment,
    variance_hinge,
)
from allsight.objectives.detection_3d import detection_3d_losses, match_boxes, sigmoid_focal_loss
from allsight.objectives.feature_queue import FeatureQueue
from allsight.objectives.gathering import (
    encode_shared,
    equal_rows,
    gather_rows,
    group_candidates,
    num_ranks,
    sum_of_rows,
)
from allsight.objectives.gaussian import (
    boltzmann_information,
    counted_mean,
    gaussian_information,
    gaussian_nll,
    laplace_nll,
    von_mises_fisher_nll,
)
from allsight.objectives.map_masks import map_mask_losses
from allsight.objectives.posteriors import (
    IGNORED_LABEL,
    boltzmann_count,
    boltzmann_logits,
    boltzmann_loss,
    false_negatives,
)
from allsight.objectives.prototypes import Centre, prototype_nll
from allsight.objectives.spread import channel_std, effective_rank, top_share, unit_std

__all__ = [
    "IGNORED_LABEL",
    "Centre",
    "FeatureQueue",
    "bernoulli_loss",
    "boltzmann_count",
    "boltzmann_information",
    "boltzmann_logits",
    "boltzmann_loss",
    "boxes_from_bevformer",
    "boxes_to_bevformer",
    "center_loss",
    "center_targets",
    "channel_std",
    "counted_mean",
    "covariance_penalty",
    "covariance_term",
    "cross_correlation_loss",
    "decode_boxes",
    "detection_3d_losses",
    "effective_rank",
    "encode_boxes",
    "encode_shared",
    "equal_rows",
    "false_negatives",
    "gather_rows",
    "gaussian_information",
    "gaussian_nll",
    "group_candidates",
    "label_weight",
    "laplace_nll",
    "map_mask_losses",
    "match_boxes",
    "num_ranks",
    "pixel_cross_entropy",
    "pixel_weight",
    "prototype_nll",
    "second_moment",
    "sigmoid_focal_loss",
    "soft_cross_entropy",
    "sum_of_rows",
    "top_share",
    "unit_std",
    "variance_hinge",
    "von_mises_fisher_nll",
]
