"""Known pre-training methods as settings of `M3I`, and M3I's own: the claim that they are one objective.

Each function takes the backbone and gives a whole configuration; widths and other numbers are those of the
method's paper for its usual backbone, and small networks want smaller ones: `replace` them. How views are
augmented belongs to the task (`Pretraining`), and how fast weights change to the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from allsight.backbones import Backbone
from allsight.config import Mixture
from allsight.models.m3i import (
    M3I,
    Bernoulli,
    Boltzmann,
    Category,
    Covariance,
    CrossCorrelation,
    Dense,
    Frozen,
    Gaussian,
    Head,
    Laplace,
    Mask,
    Mixer,
    Momentum,
    MomentumSchedule,
    Online,
    PerToken,
    Pixels,
    Pooled,
    Prototypes,
    Target,
    Text,
    VarianceCovariance,
    VonMisesFisher,
)

BOTH_WAYS = ((0, 1), (1, 0))
"""Each of two views predicts the other."""


def supervised(backbone: Backbone.Config) -> M3I.Config:
    """A view predicts its category."""
    return M3I.Config(backbone=backbone, targets=Mixture(category=category_target()))


def category_target(weight: float = 1.0, label_smoothing: float = 0.0) -> Target.Config:
    """The category from the mean of the picture's own cells."""
    return Target.Config(
        net=Category.Config(),
        decoder=Pooled.Config(),
        posterior=Boltzmann.Config(
            among="set", cosine=False, temperature=1.0, label_smoothing=label_smoothing
        ),
        weight=weight,
    )


def clip(backbone: Backbone.Config, *, channels: int = 512) -> M3I.Config:
    """A view and its caption find each other among the pairs of the group.

    Source: arXiv:2103.00020.
    """
    caption = Target.Config(
        net=Text.Config(),
        decoder=Pooled.Config(projector=Head.Config(widths=(channels,), last_bias=False)),
        posterior=Boltzmann.Config(learn_temperature=True, symmetric=True),
    )
    return M3I.Config(backbone=backbone, targets=Mixture(caption=caption))


def siglip(backbone: Backbone.Config, *, channels: int = 512) -> M3I.Config:
    """Does this caption belong to this view? Asked for every pair of the group.

    Source: arXiv:2303.15343.
    """
    caption = Target.Config(
        net=Text.Config(),
        decoder=Pooled.Config(projector=Head.Config(widths=(channels,), last_bias=False)),
        posterior=Bernoulli.Config(),
    )
    return M3I.Config(backbone=backbone, targets=Mixture(caption=caption))


def mae(backbone: Backbone.Config, *, decoder_channels: int = 512, blocks: int = 8) -> M3I.Config:
    """A quarter of the patches predicts the pixels of the others.

    Source: arXiv:2111.06377.
    """
    pixels = Target.Config(
        net=Pixels.Config(),
        decoder=Dense.Config(
            channels=decoder_channels,
            projector_blocks=0,
            predictor_blocks=blocks,
            heads=16,
            norm="layer",
            places="absolute",
        ),
        posterior=Gaussian.Config(),
        cells="hidden",
    )
    return M3I.Config(backbone=backbone, mask=Mask(ratio=0.75), targets=Mixture(pixels=pixels))


def simmim(backbone: Backbone.Config, *, block_px: int = 32) -> M3I.Config:
    """Mask tokens predict the pixels they stand for, by one linear layer.

    Source: arXiv:2111.09886.
    """
    pixels = Target.Config(
        net=Pixels.Config(normalise=False),
        decoder=PerToken.Config(),
        posterior=Laplace.Config(),
        cells="hidden",
    )
    mask = Mask(ratio=0.6, block_px=block_px, how="token")
    return M3I.Config(backbone=backbone, mask=mask, targets=Mixture(pixels=pixels))


def simsiam(backbone: Backbone.Config, *, channels: int = 2048, hidden: int = 512) -> M3I.Config:
    """Each view predicts the projection of the other, whose gradient is stopped.

    Source: arXiv:2011.10566.
    """
    projector = Head.Config(
        widths=(channels, channels, channels), norm="batch", last_norm="plain_batch", last_bias=False
    )
    view = Target.Config(
        net=Online.Config(),
        decoder=Pooled.Config(
            projector=projector, predictor=Head.Config(widths=(hidden, channels), norm="batch")
        ),
        posterior=VonMisesFisher.Config(),
        pairs=BOTH_WAYS,
    )
    return M3I.Config(backbone=backbone, targets=Mixture(view=view))


def byol(backbone: Backbone.Config, *, channels: int = 256, hidden: int = 4096) -> M3I.Config:
    """Each view predicts a slow copy's projection of the other; 4 - 2 cos, up to its constant.

    Source: arXiv:2006.07733.
    """
    head = Head.Config(widths=(hidden, channels), norm="batch")
    view = Target.Config(
        net=Momentum.Config(),
        decoder=Pooled.Config(projector=head, predictor=head),
        posterior=VonMisesFisher.Config(concentration=2.0),
        weight=2.0,
        pairs=BOTH_WAYS,
    )
    return M3I.Config(backbone=backbone, targets=Mixture(view=view), momentum=MomentumSchedule(start=0.996))


def moco(backbone: Backbone.Config, *, channels: int = 128, hidden: int = 2048) -> M3I.Config:
    """A view finds a slow copy's projection of the other among those of earlier steps (MoCo v2).

    Source: arXiv:1911.05722, arXiv:2003.04297.
    """
    view = Target.Config(
        net=Momentum.Config(),
        decoder=Pooled.Config(projector=Head.Config(widths=(hidden, channels))),
        posterior=Boltzmann.Config(among="queue", temperature=0.2),
        pairs=((0, 1),),
    )
    return M3I.Config(
        backbone=backbone, targets=Mixture(view=view), momentum=MomentumSchedule(start=0.999, end=0.999)
    )


def barlow_twins(backbone: Backbone.Config, *, channels: int = 8192) -> M3I.Config:
    """Channels of the two views' projections agree, each with its own.

    Source: arXiv:2103.03230.
    """
    projector = Head.Config(widths=(channels, channels, channels), norm="batch", last_bias=False)
    view = Target.Config(
        net=Online.Config(stop_gradient=False),
        decoder=Pooled.Config(projector=projector),
        posterior=CrossCorrelation.Config(),
        pairs=((0, 1),),
    )
    return M3I.Config(backbone=backbone, targets=Mixture(view=view))


def vicreg(backbone: Backbone.Config, *, channels: int = 8192) -> M3I.Config:
    """The two views' projections are close, their channels varied and uncorrelated: 25, 25, 1.

    Source: arXiv:2105.04906.
    """
    projector = Head.Config(widths=(channels, channels, channels), norm="batch", last_bias=False)
    view = Target.Config(
        net=Online.Config(stop_gradient=False),
        decoder=Pooled.Config(projector=projector),
        posterior=Gaussian.Config(variance=0.02),
        regularisers=(VarianceCovariance.Config(),),
        pairs=((0, 1),),
    )
    return M3I.Config(backbone=backbone, targets=Mixture(view=view))


def dino(
    backbone: Backbone.Config,
    *,
    prototypes: int = 65_536,
    channels: int = 256,
    hidden: int = 2048,
    pairs: tuple[tuple[int, int], ...] = BOTH_WAYS,
) -> M3I.Config:
    """Views agree with a slow copy on the shares of prototypes; further views are smaller crops.

    Source: arXiv:2104.14294.
    """
    projector = Head.Config(widths=(hidden, hidden, channels), act="gelu", prototypes=prototypes)
    view = Target.Config(
        net=Momentum.Config(),
        decoder=Pooled.Config(projector=projector),
        posterior=Prototypes.Config(),
        pairs=pairs,
    )
    return M3I.Config(backbone=backbone, targets=Mixture(view=view), momentum=MomentumSchedule(start=0.996))


def siameseim(backbone: Backbone.Config, *, decoder: dict[str, Any] | None = None) -> M3I.Config:
    """Part of one view predicts a slow copy's features of every patch of another.

    Source: arXiv:2206.01204.
    """
    view = dense_target(((0, 1),), decoder=decoder, covariance=0.02)
    return M3I.Config(
        backbone=backbone,
        mask=Mask(ratio=0.6, shape="rectangles"),
        targets=Mixture(view=view),
        momentum=MomentumSchedule(start=0.995),
    )


def dense_target(
    pairs: tuple[tuple[int, int], ...],
    *,
    roles: tuple[int, ...] | None = None,
    weight: float = 1.0,
    decoder: dict[str, Any] | None = None,
    covariance: float | None = None,
    centre: bool = False,
) -> Target.Config:
    """A slow copy's features of all cells of a view, kept from collapse by the covariance term.

    Args:
        pairs, roles, weight: As of `Target`.
        decoder: Settings of the decoder.
        covariance: Weight of the covariance term; None: `covariance_weight` of the decoder's width.
        centre: As of the target network `momentum`.
    """
    dense = Dense.Config(**(decoder or {}))
    held = covariance_weight(dense.channels) if covariance is None else covariance
    return Target.Config(
        net=Momentum.Config(centre=centre, normalise=True),
        decoder=dense,
        posterior=Gaussian.Config(),
        regularisers=(Covariance.Config(weight=held),),
        weight=weight,
        pairs=pairs,
        roles=roles,
    )


def covariance_weight(channels: int) -> float:
    """Weight of the covariance term for dense targets of that width: 0.02 for 768 channels, more for fewer.

    The best prediction of a target t is (I + weight * C)^-1 t, and the second moment C of targets that all
    lie in one direction has the eigenvalue d there: what holds that direction back is weight * d. With 0.02
    at 96 channels it is an eighth of what it is at 768, and targets do shrink (seen here, see docs/m3i.md).
    That the product is what is to be kept is our choice.

    Source: 0.02 at 768 channels is that of Siamese Image Modeling, arXiv:2206.01204.
    """
    return 0.02 * (768 / channels)


def feature_distillation(backbone: Backbone.Config, *, teacher: Backbone.Config) -> M3I.Config:
    """Each cell predicts a frozen teacher's feature of it, whitened by a layer norm.

    Source: arXiv:2205.14141, with the Gaussian in place of the smooth absolute error.
    """
    view = Target.Config(
        net=Frozen.Config(backbone=teacher), decoder=PerToken.Config(), posterior=Gaussian.Config()
    )
    return M3I.Config(backbone=backbone, targets=Mixture(view=view))


def m3i(
    backbone: Backbone.Config,
    *,
    neck: str = "last",
    block_px: int = 32,
    decoder: dict[str, Any] | None = None,
    semantic: float = 0.5,
    captions: bool = False,
    centre: bool = False,
    **others: Any,
) -> M3I.Config:
    """Two pictures mixed by blocks: one predicts its own view, one another view, both their categories.

    Weights of the targets, mixing and the way the pictures keep apart are our choices (the paper's were never
    published): 1, 1 and `semantic`.

    Args:
        neck, others: Settings of `M3I`.
        block_px: Side of the blocks.
        decoder: Settings of the two dense decoders.
        semantic: Weight of category and caption; 0 leaves them out.
        captions: Whether there is a target of captions too.
        centre: Whether targets lose first what all pictures have in common at a cell, which a small network
            would make all of its features [D]; see `Momentum`.
    Source: arXiv:2211.09807, figure 2.
    """
    targets: dict[str, Target.Config] = {
        "intra": dense_target(((0, 0),), roles=(0,), decoder=decoder, centre=centre),
        "inter": dense_target(((0, 1),), roles=(1,), decoder=decoder, centre=centre),
    }
    if semantic > 0:
        targets["category"] = category_target(semantic, label_smoothing=0.1)
        if captions:
            targets["text"] = clip(backbone).targets["caption"].model_copy(update={"weight": semantic})
    settings = {"momentum": MomentumSchedule(start=0.995), **others}
    return M3I.Config(
        backbone=backbone,
        neck=neck,  # type: ignore[arg-type]
        mixer=Mixer(pictures=2, block_px=block_px),
        targets=Mixture(targets),
        **settings,
    )


CASES: dict[str, Callable[..., M3I.Config]] = {
    "supervised": supervised,
    "clip": clip,
    "siglip": siglip,
    "mae": mae,
    "simmim": simmim,
    "simsiam": simsiam,
    "byol": byol,
    "moco": moco,
    "barlow_twins": barlow_twins,
    "vicreg": vicreg,
    "dino": dino,
    "siameseim": siameseim,
    "feature_distillation": feature_distillation,
    "m3i": m3i,
}
"""Name of a method -> its settings."""
