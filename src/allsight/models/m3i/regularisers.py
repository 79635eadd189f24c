"""Terms that keep learnt targets spread, as settings. Each returns its weighted value."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, Configured, Family
from allsight.objectives import covariance_penalty, covariance_term, second_moment, variance_hinge

REGULARISERS = Family(
    "regulariser",
    {
        "covariance": "allsight.models.m3i.regularisers:Covariance",
        "variance_covariance": "allsight.models.m3i.regularisers:VarianceCovariance",
    },
)


class Regulariser(nn.Module, Configured):
    """Base of all regularisers; `forward` takes predictions and targets as rows [n, d]."""

    class Config(Config):
        pass

    family: ClassVar[Family | None] = REGULARISERS

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        raise NotImplementedError(f"{type(self).__name__} has no value")


class Covariance(Regulariser):
    """weight * p^T Cov(target) p / d of predictions p: pushes them off directions that all targets share."""

    class Config(Regulariser.Config):
        """Settings: lambda of Siamese Image Modeling."""

        weight: float = Field(default=0.02, ge=0)

    def forward(self, prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        wide = torch.promote_types(prediction.dtype, torch.float32)
        return self.config.weight * covariance_term(prediction.to(wide), second_moment(target))


class VarianceCovariance(Regulariser):
    """Keeps the channels of both sides varied and uncorrelated (VICReg)."""

    class Config(Regulariser.Config):
        """Settings: weights of the hinge on the standard deviations and of the squared covariances."""

        variance: float = Field(default=25.0, ge=0)
        covariance: float = Field(default=1.0, ge=0)

    def forward(self, prediction: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        config = self.config
        hinge = (variance_hinge(prediction) + variance_hinge(target)) / 2
        penalty = covariance_penalty(prediction) + covariance_penalty(target)
        return config.variance * hinge + config.covariance * penalty
