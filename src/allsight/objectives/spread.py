"""How spread a set of features is: the numbers that show a collapse.

Letters: n rows, d channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def unit_std(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean over channels of the standard deviation of unit vectors, times sqrt(d): 1 on a whole sphere.

    It falls to 0 where all rows point one way. Effective rank and probes do not see that, as they do not
    depend on the scale; this number does.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(wide, dim=-1).std(0, unbiased=False).mean() * wide.shape[-1] ** 0.5


def channel_std(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean over channels of the standard deviation."""
    return features.to(torch.promote_types(features.dtype, torch.float32)).std(0, unbiased=False).mean()


def effective_rank(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """exp(entropy of the eigenvalues of the covariance, as shares of their sum), from 1 to d.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    values = torch.linalg.svdvals(wide - wide.mean(0)).square()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp()


def top_share(moment: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """Largest eigenvalue of a second moment as a share of the sum of all: 1/d at best, 1 at worst."""
    values = torch.linalg.eigvalsh(moment)
    return values[-1] / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
