"""Losses of masks that may overlap: an answer of yes or no in each cell, and how well the areas agree.

Letters: l layers that answer, b rows, k classes, h w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from allsight.objectives.detection_3d import sigmoid_focal_loss


def map_mask_losses(
    logits: Float[Tensor, "l b k h w"], truth: Bool[Tensor, "b k h w"], *, focal: bool = False
) -> dict[str, Float[Tensor, ""]]:
    """Means over rows and classes, summed over layers.

    Args:
        logits: Of each class by itself.
        truth: Classes may overlap; a row may lack a class.
        focal: Focal loss in place of cross-entropy, for classes of few cells.
    Returns:
        `cells`, a mean over cells too, and `areas`, 1 - Dice of each mask, to which one cell is added above
        and below so that a class that is not there can be right.

    Source: V-Net, arXiv:1606.04797, eq. 3, for Dice with squares.
    """
    wanted = truth.to(logits.dtype).expand_as(logits)
    if focal:
        cells = sigmoid_focal_loss(logits, wanted)
    else:
        cells = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    chance = logits.sigmoid()
    both = (chance * wanted).flatten(3).sum(-1)
    whole = (chance.square() + wanted.square()).flatten(3).sum(-1)
    areas = 1 - (2 * both + 1) / (whole + 1)
    per_layer = torch.stack([cells.flatten(1).mean(1), areas.flatten(1).mean(1)])
    total = per_layer.sum(1)
    return {"cells": total[0], "areas": total[1]}
