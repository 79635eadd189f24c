"""Where the middles of things are, as a map per class: targets and loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allsight.types import BEVGrid, Boxes3D


def center_targets(
    truth: Sequence[Boxes3D], grid: BEVGrid, num_classes: int, like: Tensor, *, sigma_m: float = 1.6
) -> Float[Tensor, "b classes h w"]:
    """Gaussians around the cells that hold the boxes' middles, exactly 1 there; the larger where two meet.

    Boxes whose middle lies outside the grid leave no trace.
    """
    centers = grid.centers_m(like)
    rows = []
    for boxes in truth:
        target = like.new_zeros((num_classes, grid.cells))
        parts = grid.to_parts(boxes.centers_ref_m[:, :2].to(like))
        inside = ((parts >= 0) & (parts < 1)).all(-1)
        counts = parts.new_tensor([grid.hw[1], grid.hw[0]])
        cells = (parts[inside] * counts).long()
        middles = centers[cells[:, 1] * grid.hw[1] + cells[:, 0]]
        bells = torch.exp(-((middles[:, None] - centers).square().sum(-1)) / (2 * sigma_m**2))
        labels = boxes.labels.to(like.device)[inside]
        target.scatter_reduce_(0, labels[:, None].expand_as(bells), bells, "amax")
        rows.append(target.unflatten(1, grid.hw))
    return torch.stack(rows)


def center_loss(
    logits: Float[Tensor, "b classes h w"],
    targets: Float[Tensor, "b classes h w"],
    *,
    num_boxes: float | None = None,
) -> Float[Tensor, ""]:
    """Focal loss in which cells near a middle are forgiven, over the number of middles (at least 1).

    Source: CornerNet, arXiv:1808.01244, eq. 1, with alpha 2 and beta 4.
    """
    peaks = targets == 1
    chance = logits.sigmoid()
    yes = F.logsigmoid(logits) * (1 - chance) ** 2
    no = F.logsigmoid(-logits) * chance**2 * (1 - targets) ** 4
    count = peaks.sum().clamp_min(1) if num_boxes is None else max(num_boxes, 1.0)
    return -torch.where(peaks, yes, no).sum() / count
