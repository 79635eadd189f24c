"""Losses as functions of tensors. They know no task and no network."""

from allsight.objectives.cross_entropy import (
    label_weight,
    pixel_cross_entropy,
    pixel_weight,
    soft_cross_entropy,
)

__all__ = ["label_weight", "pixel_cross_entropy", "pixel_weight", "soft_cross_entropy"]
