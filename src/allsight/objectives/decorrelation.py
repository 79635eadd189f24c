"""What keeps learnt targets spread: terms in the second moments of features.

All take features as rows and pool rows of all ranks, so that a batch spread over ranks gives the same value.
None forms a matrix of rows times rows.

Letters: n rows, d channels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allsight.objectives.gathering import gather_rows, num_ranks


@torch.no_grad()
def second_moment(targets: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """targets^T targets / n over the rows of all ranks, in float32 at least; no gradient."""
    wide = targets.detach().to(torch.promote_types(targets.dtype, torch.float32))
    moment = wide.T @ wide
    count = torch.tensor(float(len(wide)), dtype=moment.dtype, device=moment.device)
    if num_ranks() > 1:
        dist.all_reduce(moment)
        dist.all_reduce(count)
    return moment / count.clamp_min(1)


def covariance_term(prediction: Float[Tensor, "n d"], moment: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """Mean of p^T moment p over rows p, divided by d: memory grows with n, not with its square.

    Source: UniGrad, arXiv:2112.05141; Siamese Image Modeling, arXiv:2206.01204.
    """
    wide = prediction.to(moment.dtype)
    return ((wide @ moment) * wide).sum() / (max(len(wide), 1) * wide.shape[-1])


def variance_hinge(features: Float[Tensor, "n d"], *, eps: float = 1e-4) -> Float[Tensor, ""]:
    """Mean over channels of max(0, 1 - standard deviation).

    Source: VICReg, arXiv:2105.04906, eq. 1 and 2.
    """
    pooled = gather_rows(features)
    return F.relu(1 - (pooled.var(0) + eps).sqrt()).mean()


def covariance_penalty(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Sum of the squared covariances of different channels, divided by d.

    Source: VICReg, arXiv:2105.04906, eq. 3 and 4.
    """
    pooled = gather_rows(features)
    centred = pooled - pooled.mean(0)
    covariance = centred.T @ centred / (len(pooled) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / features.shape[1]


def cross_correlation_loss(
    a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], *, redundancy: float = 0.0051, eps: float = 1e-5
) -> Float[Tensor, ""]:
    """Sum over channels of (1 - c_ii)^2, plus `redundancy` times the sum of the other c_ij^2.

    c is the correlation of the channels of two sets of features over all rows. 1 - c_ii is half the mean
    squared distance of standardised channels, so the first sum is a Gaussian's, squared channel by channel.

    Source: Barlow Twins, arXiv:2103.03230, eq. 1 and 2.
    """
    a, b = (_standardised(gather_rows(x), eps) for x in (a, b))
    correlation = a.T @ b / len(a)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + redundancy * others


def _standardised(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + eps).sqrt()
