"""M3I pre-training: Crop record -> Mixer -> Encoder -> {Decoder}; {TargetNet} -> Posterior -> Balancer.

`M3I` is the model; the other names are settings to write recipes with.
"""

from allsight.models.m3i.balancing import Balancer, Fixed, GradientMatching, Homoscedastic
from allsight.models.m3i.decoders import Decoder, Dense, PerToken, Pooled
from allsight.models.m3i.heads import Head
from allsight.models.m3i.model import M3I, Explained
from allsight.models.m3i.monitors import Watch
from allsight.models.m3i.nets import Category, Frozen, Momentum, Online, Pixels, TargetNet, Text
from allsight.models.m3i.options import Mask, Mixer, MomentumSchedule
from allsight.models.m3i.posteriors import (
    Bernoulli,
    Boltzmann,
    CrossCorrelation,
    Gaussian,
    Laplace,
    Posterior,
    Prototypes,
    VonMisesFisher,
)
from allsight.models.m3i.regularisers import Covariance, Regulariser, VarianceCovariance
from allsight.models.m3i.target import Target
from allsight.models.m3i.text import TextEncoder

__all__ = [
    "M3I",
    "Balancer",
    "Bernoulli",
    "Boltzmann",
    "Category",
    "Covariance",
    "CrossCorrelation",
    "Decoder",
    "Dense",
    "Explained",
    "Fixed",
    "Frozen",
    "Gaussian",
    "GradientMatching",
    "Head",
    "Homoscedastic",
    "Laplace",
    "Mask",
    "Mixer",
    "Momentum",
    "MomentumSchedule",
    "Online",
    "PerToken",
    "Pixels",
    "Pooled",
    "Posterior",
    "Prototypes",
    "Regulariser",
    "Target",
    "TargetNet",
    "Text",
    "TextEncoder",
    "VarianceCovariance",
    "VonMisesFisher",
    "Watch",
]
