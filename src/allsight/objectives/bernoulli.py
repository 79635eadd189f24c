"""A yes or no for every pair of rows: the sigmoid loss.

Letters: n groups, b rows, g candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def bernoulli_loss(
    logits: Float[Tensor, "n b g"],
    own: Shaped[Tensor, "n b"],
    *,
    excluded: Bool[Tensor, "n b g"] | None = None,
    rows: Bool[Tensor, "n b"] | None = None,
) -> Float[Tensor, ""]:
    """-log sigmoid(+-logit), summed over the candidates of a row, as a mean over rows.

    Args:
        logits: Scaled and shifted similarities.
        own: Place of each row's own candidate, the only one that belongs to it.
        excluded: Pairs about which nothing is said.
        rows: Rows that count; None: all.
    Returns:
        A scalar; a zero that keeps its graph where no row counts.
    Source: SigLIP, arXiv:2303.15343, section 3.2.
    """
    belongs = F.one_hot(own, logits.shape[-1]).bool()
    losses = -F.logsigmoid(torch.where(belongs, logits, -logits))
    if excluded is not None:
        losses = losses.masked_fill(excluded & ~belongs, 0.0)
    per_row = losses.sum(-1)
    if rows is None:
        return per_row.mean()
    return (per_row * rows).sum() / rows.sum().clamp_min(1)
