"""Posteriors of vectors that have no finite set to come from: Gaussian, Laplace, von Mises-Fisher.

Each is -log P(target | prediction) of one vector, up to a constant that depends on neither, and divided by
the number of channels where channels are independent, so that losses of wide and narrow targets compare.

Letters: d channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor


def gaussian_nll(
    prediction: Float[Tensor, "*lead d"], target: Float[Tensor, "*lead d"], *, variance: float = 0.5
) -> Float[Tensor, "*lead"]:
    """||prediction - target||^2 / (2 variance d): with the variance 1/2 the mean squared error."""
    return (prediction - target).square().mean(-1) / (2 * variance)


def laplace_nll(
    prediction: Float[Tensor, "*lead d"], target: Float[Tensor, "*lead d"], *, scale: float = 1.0
) -> Float[Tensor, "*lead"]:
    """|prediction - target|_1 / (scale d): with the scale 1 the mean absolute error."""
    return (prediction - target).abs().mean(-1) / scale


def von_mises_fisher_nll(
    prediction: Float[Tensor, "*lead d"], target: Float[Tensor, "*lead d"], *, concentration: float = 1.0
) -> Float[Tensor, "*lead"]:
    """-concentration * cosine of the angle between the two. The normaliser depends on neither."""
    return -concentration * F.cosine_similarity(prediction, target, dim=-1)


def counted_mean(
    values: Float[Tensor, " b *rest"], counts: Shaped[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Mean over the rows that count (all by default); a zero that keeps its graph where none does."""
    if counts is None:
        return values.mean() if values.numel() else values.sum()
    kept = values[counts]
    return kept.mean() if kept.numel() else values.sum() * 0


def gaussian_information(
    total_variance: Float[Tensor, " d"], residual_variance: Float[Tensor, " d"]
) -> Float[Tensor, ""]:
    """Lower bound on the information in nats between prediction and target: sum of log(total / residual) / 2.

    Args:
        total_variance: Of the target, channel by channel.
        residual_variance: Mean square of target minus prediction.
    """
    tiny = torch.finfo(total_variance.dtype).tiny
    return 0.5 * (total_variance.clamp_min(tiny) / residual_variance.clamp_min(tiny)).log().sum()


def boltzmann_information(cross_entropy: Tensor | float, num_candidates: float) -> Tensor | float:
    """Lower bound log N - CE in nats; it cannot say more than log N.

    Source: van den Oord et al., arXiv:1807.03748, section 2.3; its ceiling: arXiv:1811.04251.
    """
    return math.log(num_candidates) - cross_entropy
