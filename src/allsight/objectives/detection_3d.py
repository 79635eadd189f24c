"""One-to-one matching of predicted boxes to true ones, and the losses that follow from it.

All decoder layers and rows are costed, and lose, in one go; only the assignment itself runs on the CPU.
Letters: l decoder layers, b rows, q queries, k boxes of the fullest row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from allsight.objectives.box_code_3d import CODE_SIZE, encode_boxes
from allsight.types import Boxes3D

CODE_WEIGHTS = (1.0,) * 8 + (0.2, 0.2)
"""Weights of the ten numbers of a box's code: velocity counts a fifth."""

_ALPHA, _GAMMA, _TINY = 0.25, 2, 1e-12
_NEVER = 1e6  # cost of what has no cost, so that the assignment works and the loss shows what is wrong


def sigmoid_focal_loss(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Cross-entropy of independent yes-no answers in which sure ones count little, element by element.

    Source: Focal Loss, arXiv:1708.02002, eq. 5, with alpha 0.25 and gamma 2.
    """
    chance = logits.sigmoid()
    wrong = torch.where(targets > 0.5, 1 - chance, chance)
    weight = torch.where(targets > 0.5, _ALPHA, 1 - _ALPHA) * wrong**_GAMMA
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def match_boxes(
    logits: Float[Tensor, "l b q classes"],
    codes: Float[Tensor, "l b q 10"],
    truth: Sequence[Boxes3D],
    *,
    class_cost: float = 2.0,
    box_cost: float = 0.25,
) -> Int64[Tensor, "l b q"]:
    """Assign true boxes to queries so that the sum of costs is least, apart for each layer and row.

    The cost is that of the focal loss for calling the query by the box's class, plus the L1 distance of the
    codes without velocity.

    Args:
        logits: Class logits.
        codes: Codes of the predicted boxes, see `box_code_3d`.
        truth: The boxes of each row.
        class_cost: Factor on the class's cost.
        box_cost: Factor on the distance.
    Returns:
        Index of the query's true box, -1 without one; on the CPU.

    Source: fundamentalvision/BEVFormer:projects/mmdet3d_plugin/core/bbox/assigners/hungarian_assigner_3d.py.
    """
    # Loading scipy takes longer than all other losses together.
    from scipy.optimize import linear_sum_assignment

    true_codes, true_labels = _padded(truth, codes)
    cost = _costs(logits.detach(), codes.detach(), true_codes, true_labels, class_cost, box_cost)
    table = torch.nan_to_num(cost, nan=_NEVER, posinf=_NEVER, neginf=-_NEVER).cpu().numpy()
    assigned = np.full(table.shape[:3], -1, dtype=np.int64)
    for layer in range(table.shape[0]):
        for row, boxes in enumerate(truth):
            queries, indices = linear_sum_assignment(table[layer, row, :, : len(boxes.labels)])
            assigned[layer, row, queries] = indices
    return torch.from_numpy(assigned)


def detection_3d_losses(
    logits: Float[Tensor, "l b q classes"],
    codes: Float[Tensor, "l b q 10"],
    truth: Sequence[Boxes3D],
    *,
    class_weight: float = 2.0,
    box_weight: float = 0.25,
    code_weights: Sequence[float] = CODE_WEIGHTS,
    num_boxes: float | None = None,
    keep_boxes_in_part: bool = True,
) -> dict[str, Float[Tensor, " l"]]:
    """Losses of set prediction, a number per decoder layer.

    Args:
        logits: Class logits.
        codes: Codes of the predicted boxes, see `box_code_3d`.
        truth: The boxes of each row; none at all is allowed.
        class_weight: Factor on the focal loss and on its cost in matching.
        box_weight: Factor on the L1 loss of matched boxes and on its cost.
        code_weights: Weight of each number of the code in the L1 loss.
        num_boxes: What both sums are divided by; None: matched boxes of this batch, at least 1.
        keep_boxes_in_part: A box with an unknown number (velocity NaN) learns from its other numbers. False:
            it is left out of the L1 loss, as in the official code. It is matched either way.
    Returns:
        `classes` and `boxes`, each [l]; training uses the sum over layers.
    """
    assigned = match_boxes(logits, codes, truth, class_cost=class_weight, box_cost=box_weight)
    true_codes, true_labels = _padded(truth, codes)
    layers, rows, queries = (assigned >= 0).nonzero(as_tuple=True)
    boxes = assigned[layers, rows, queries].to(codes.device)
    layers, rows, queries = (index.to(codes.device) for index in (layers, rows, queries))
    count = num_boxes if num_boxes is not None else max(len(boxes) / codes.shape[0], 1.0)

    targets = torch.zeros_like(logits)
    targets[layers, rows, queries, true_labels[rows, boxes]] = 1.0
    classes = sigmoid_focal_loss(logits, targets).flatten(1).sum(1) * (class_weight / count)

    predicted, wanted = codes[layers, rows, queries], true_codes[rows, boxes]
    known = wanted.isfinite()
    if not keep_boxes_in_part:
        known = known.all(-1, keepdim=True)
    distance = torch.where(known, (predicted - torch.where(known, wanted, 0.0)).abs(), 0.0)
    per_box = (distance * distance.new_tensor(code_weights)).sum(-1)
    sums = per_box.new_zeros(codes.shape[0]).index_add(0, layers, per_box)
    return {"classes": classes, "boxes": sums * (box_weight / count)}


def _costs(
    logits: Float[Tensor, "l b q classes"],
    codes: Float[Tensor, "l b q 10"],
    true_codes: Float[Tensor, "b k 10"],
    true_labels: Int64[Tensor, "b k"],
    class_cost: float,
    box_cost: float,
) -> Float[Tensor, "l b q k"]:
    chance = logits.sigmoid()
    yes = -(chance + _TINY).log() * _ALPHA * (1 - chance) ** _GAMMA
    no = -(1 - chance + _TINY).log() * (1 - _ALPHA) * chance**_GAMMA
    index = true_labels[None, :, None].expand(*logits.shape[:3], -1)
    named = (yes - no).gather(-1, index)
    return class_cost * named + box_cost * torch.cdist(codes[..., :8], true_codes[None, ..., :8], p=1)


def _padded(truth: Sequence[Boxes3D], like: Tensor) -> tuple[Float[Tensor, "b k 10"], Int64[Tensor, "b k"]]:
    """Codes and labels of all rows, filled up with zeros."""
    most = max((len(boxes.labels) for boxes in truth), default=0)
    codes = like.new_zeros((len(truth), most, CODE_SIZE))
    labels = torch.zeros((len(truth), most), dtype=torch.int64, device=like.device)
    for row, boxes in enumerate(truth):
        codes[row, : len(boxes.labels)] = encode_boxes(boxes).to(codes)
        labels[row, : len(boxes.labels)] = boxes.labels.to(labels)
    return codes, labels
