"""Posteriors as settings: from predictions and targets of some rows to one mean loss.

Letters: b rows, g candidates of a group, d channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, ConfigError, Configured, Family
from allsight.models.m3i.nets import Truth
from allsight.models.m3i.scene import Groups
from allsight.objectives import (
    IGNORED_LABEL,
    Centre,
    FeatureQueue,
    bernoulli_loss,
    boltzmann_loss,
    counted_mean,
    cross_correlation_loss,
    equal_rows,
    false_negatives,
    gaussian_nll,
    group_candidates,
    laplace_nll,
    prototype_nll,
    von_mises_fisher_nll,
)

POSTERIORS = Family(
    "posterior",
    {
        "bernoulli": "allsight.models.m3i.posteriors:Bernoulli",
        "boltzmann": "allsight.models.m3i.posteriors:Boltzmann",
        "cross_correlation": "allsight.models.m3i.posteriors:CrossCorrelation",
        "gaussian": "allsight.models.m3i.posteriors:Gaussian",
        "laplace": "allsight.models.m3i.posteriors:Laplace",
        "prototypes": "allsight.models.m3i.posteriors:Prototypes",
        "von_mises_fisher": "allsight.models.m3i.posteriors:VonMisesFisher",
    },
)


@dataclass(frozen=True)
class Scored:
    """A mean loss, and what monitors want to know of it (no gradient).

    Args:
        loss: Mean over the rows that count; a zero with its graph where none does.
        candidates: Size of the set that cross-entropies choose from (the geometric mean over rows that have
            sets of their own); 0: not a choice.
        values: Further numbers by name.
        cross_entropy: Of a choice whose loss is not the cross-entropy of what is true, because labels are
            smoothed; None: the loss is it.
    """

    loss: Float[Tensor, ""]
    candidates: float = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    cross_entropy: Float[Tensor, ""] | None = None


class Posterior(nn.Module, Configured):
    """Base of all posteriors; built as `Class(config, channels)`, `channels` being the prediction's width.

    Attributes:
        learns_scale: Whether it weighs itself against other targets by a scale that it learns.
    """

    class Config(Config):
        pass

    family: ClassVar[Family | None] = POSTERIORS
    learns_scale: bool = False

    def __init__(self, config: Any, channels: int) -> None:
        super().__init__()
        self.config = config

    def forward(self, prediction: Float[Tensor, "b *cells d"], truth: Truth, groups: Groups) -> Scored:
        """Score predictions of some rows.

        Args:
            groups: Rows that are each other's candidates.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score")

    def advance(self) -> None:
        """What changes once per optimiser step."""


class Boltzmann(Posterior):
    """One of a finite set: softmax cross-entropy, as in classification, CLIP and InfoNCE."""

    class Config(Posterior.Config):
        """Settings.

        Attributes:
            among: Classes or whatever set the target network brings ("set"), targets of the other rows of the
                group ("group"), or targets of earlier steps ("queue").
            cosine: Compare directions only.
            temperature: What similarities are divided by; where it is learnt, at the start.
            learn_temperature: Whether it learns; its inverse is held at `max_scale` or below.
            max_scale: Largest inverse of the temperature.
            symmetric: Also let each target choose among the predictions of the group.
            queue: Targets of earlier steps that are kept.
            label_smoothing: Share of the label that is spread over the set.
            drop_same: Whether a target that says the same as a row's own is no negative.
        """

        among: Literal["set", "group", "queue"] = "group"
        cosine: bool = True
        temperature: float = Field(default=0.07, gt=0)
        learn_temperature: bool = False
        max_scale: float = Field(default=100.0, gt=0)
        symmetric: bool = False
        queue: int = Field(default=65_536, ge=1)
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)
        drop_same: bool = True

    def __init__(self, config: Boltzmann.Config, channels: int) -> None:
        super().__init__(config, channels)
        self.learns_scale = config.learn_temperature
        start = torch.tensor(-math.log(config.temperature))
        self.log_scale: Tensor
        if config.learn_temperature:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start, persistent=False)
        self.queue = FeatureQueue(config.queue, channels) if config.among == "queue" else None

    def forward(self, prediction: Float[Tensor, "b d"], truth: Truth, groups: Groups) -> Scored:
        if self.config.among == "set":
            return self._of_set(prediction, truth)
        if truth.values is None or prediction.ndim != 2 or truth.values.ndim != 2:
            raise ConfigError(
                f"posterior 'boltzmann' with among='{self.config.among}' needs one vector a row as target; "
                "classes take among='set', cells another posterior"
            )
        if self.config.among == "queue":
            return self._of_queue(prediction, truth.values)
        return self._of_group(prediction, truth, groups)

    def advance(self) -> None:
        """Hold the scale at its clamp, which keeps its gradient; bring the queue up to date."""
        if self.learns_scale:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.config.max_scale))
        if self.queue is not None:
            self.queue.advance()

    def _logits(self, queries: Tensor, candidates: Tensor) -> Tensor:
        if self.config.cosine:
            queries, candidates = F.normalize(queries, dim=-1), F.normalize(candidates, dim=-1)
        return self._scale() * (queries @ candidates.transpose(-2, -1))

    def _scale(self) -> Tensor | float:
        return self.log_scale.exp() if self.learns_scale else 1 / self.config.temperature

    def _of_set(self, prediction: Tensor, truth: Truth) -> Scored:
        if truth.labels is None or truth.candidates is None:
            raise ConfigError("posterior 'boltzmann' with among='set' needs a target network with classes")
        logits = self._logits(prediction, truth.candidates)
        if truth.bias is not None:
            logits = logits + truth.bias
        loss, hard = self._chosen(logits, truth.labels)
        return Scored(loss, logits.shape[-1], self._numbers(), hard)

    def _of_group(self, prediction: Tensor, truth: Truth, groups: Groups) -> Scored:
        assert truth.values is not None
        pairs = in_groups(prediction, truth, groups, drop_same=self.config.drop_same)
        logits = self._logits(pairs.queries, pairs.candidates)
        loss, hard = self._chosen(logits, pairs.labels, pairs.excluded)
        if self.config.symmetric:
            back = in_groups(
                truth.values,
                Truth(prediction, present=truth.present, keys=truth.keys),
                groups,
                drop_same=self.config.drop_same,
            )
            logits_back = self._logits(back.queries, back.candidates)
            other, other_hard = self._chosen(logits_back, back.labels, back.excluded)
            loss = (loss + other) / 2
            hard = None if hard is None or other_hard is None else (hard + other_hard) / 2
        return Scored(loss, pairs.num_candidates(), self._numbers(), hard)

    def _of_queue(self, prediction: Tensor, values: Tensor) -> Scored:
        assert self.queue is not None
        if self.config.cosine:
            prediction, values = F.normalize(prediction, dim=-1), F.normalize(values, dim=-1)
        own = (prediction * values).sum(-1, keepdim=True)
        logits = torch.cat([own, prediction @ self.queue.negatives().to(prediction).T], 1) * self._scale()
        if self.training:
            self.queue.offer(values)
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        return Scored(loss, logits.shape[-1], self._numbers())

    def _chosen(
        self, logits: Tensor, labels: Tensor, excluded: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The loss, and where labels are smoothed the cross-entropy of the true ones."""
        smoothing = self.config.label_smoothing
        loss = boltzmann_loss(logits, labels, label_smoothing=smoothing, excluded=excluded)
        return loss, boltzmann_loss(logits.detach(), labels, excluded=excluded) if smoothing else None

    def _numbers(self) -> dict[str, Tensor]:
        return {"scale": self.log_scale.detach().exp()} if self.learns_scale else {}


class Bernoulli(Posterior):
    """Each pair of the group by itself: does this target belong to this row? (SigLIP)"""

    class Config(Posterior.Config):
        """Settings.

        Attributes:
            scale: Factor on the cosine, at the start.
            bias: What is added, at the start.
            drop_same: Whether nothing is said of a target that says the same as a row's own.
        """

        scale: float = Field(default=10.0, gt=0)
        bias: float = -10.0
        drop_same: bool = True

    learns_scale = True

    def __init__(self, config: Bernoulli.Config, channels: int) -> None:
        super().__init__(config, channels)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.bias = nn.Parameter(torch.tensor(float(config.bias)))

    def forward(self, prediction: Float[Tensor, "b d"], truth: Truth, groups: Groups) -> Scored:
        pairs = in_groups(prediction, truth, groups, drop_same=self.config.drop_same)
        queries, candidates = F.normalize(pairs.queries, dim=-1), F.normalize(pairs.candidates, dim=-1)
        scale = self.log_scale.exp()
        logits = scale * (queries @ candidates.transpose(1, 2)) + self.bias
        rows = pairs.labels != IGNORED_LABEL
        loss = bernoulli_loss(logits, pairs.labels.clamp_min(0), excluded=pairs.excluded, rows=rows)
        return Scored(loss, 0, {"scale": scale.detach()})


class _OfVectors(Posterior):
    """Base of those that score each vector by itself."""

    def forward(self, prediction: Float[Tensor, "b *cells d"], truth: Truth, groups: Groups) -> Scored:
        if truth.values is None or truth.values.shape != prediction.shape:
            found = None if truth.values is None else tuple(truth.values.shape)
            raise ConfigError(
                f"posterior: predictions of shape {tuple(prediction.shape)} do not fit targets of shape "
                f"{found}; choose decoder and target network alike (both of cells, or both pooled)"
            )
        wide = torch.promote_types(prediction.dtype, torch.float32)
        return Scored(
            counted_mean(self.of_vectors(prediction.to(wide), truth.values.to(wide)), truth.present)
        )

    def of_vectors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """-log P of each vector."""
        raise NotImplementedError


class Gaussian(_OfVectors):
    """Squared error; the variance 1/2 makes it the mean squared error."""

    class Config(Posterior.Config):
        """Settings: the variance of each channel."""

        variance: float = Field(default=0.5, gt=0)

    def of_vectors(self, prediction: Tensor, target: Tensor) -> Tensor:
        return gaussian_nll(prediction, target, variance=self.config.variance)


class Laplace(_OfVectors):
    """Absolute error."""

    class Config(Posterior.Config):
        """Settings: the mean deviation of each channel."""

        scale: float = Field(default=1.0, gt=0)

    def of_vectors(self, prediction: Tensor, target: Tensor) -> Tensor:
        return laplace_nll(prediction, target, scale=self.config.scale)


class VonMisesFisher(_OfVectors):
    """Directions: minus the cosine times the concentration."""

    class Config(Posterior.Config):
        """Settings: how narrow it is."""

        concentration: float = Field(default=1.0, gt=0)

    def of_vectors(self, prediction: Tensor, target: Tensor) -> Tensor:
        return von_mises_fisher_nll(prediction, target, concentration=self.config.concentration)


class Prototypes(_OfVectors):
    """Softmax over prototypes whose targets are centred and sharpened (DINO)."""

    class Config(Posterior.Config):
        """Settings.

        Attributes:
            temperature: Of predictions.
            target_temperature: Of targets; smaller, so that they are sharper.
            centre_momentum: Weight of the old centre in a step.
        """

        temperature: float = Field(default=0.1, gt=0)
        target_temperature: float = Field(default=0.04, gt=0)
        centre_momentum: float = Field(default=0.9, ge=0, lt=1)

    def __init__(self, config: Prototypes.Config, channels: int) -> None:
        super().__init__(config, channels)
        self.centre = Centre(channels, momentum=config.centre_momentum)

    def forward(self, prediction: Float[Tensor, "b *cells d"], truth: Truth, groups: Groups) -> Scored:
        scored = super().forward(prediction, truth, groups)
        if self.training and truth.values is not None:
            self.centre.offer(truth.values.flatten(0, -2))
        return scored

    def of_vectors(self, prediction: Tensor, target: Tensor) -> Tensor:
        config = self.config
        return prototype_nll(
            prediction,
            target,
            self.centre.mean.to(target),
            temperature=config.temperature,
            target_temperature=config.target_temperature,
        )

    def advance(self) -> None:
        self.centre.advance()


class CrossCorrelation(Posterior):
    """Channels of prediction and target shall agree each with its own and with no other (Barlow Twins)."""

    class Config(Posterior.Config):
        """Settings.

        Attributes:
            redundancy: Weight of the correlations of different channels.
        """

        redundancy: float = Field(default=0.0051, ge=0)

    def forward(self, prediction: Float[Tensor, "b *cells d"], truth: Truth, groups: Groups) -> Scored:
        assert truth.values is not None
        a, b = prediction.flatten(0, -2), truth.values.flatten(0, -2)
        return Scored(cross_correlation_loss(a, b, redundancy=self.config.redundancy))


@dataclass(frozen=True)
class Pairs:
    """Rows and their candidates, group by group; `labels` is -100 for rows that do not count."""

    queries: Float[Tensor, "n m d"]
    candidates: Float[Tensor, "n g d"]
    labels: Shaped[Tensor, "n m"]
    excluded: Bool[Tensor, "n m g"] | None

    def num_candidates(self) -> float:
        """Geometric mean of the sizes of the sets that rows choose from, without what is excluded."""
        if self.excluded is None:
            return float(self.candidates.shape[1])
        sizes = (~self.excluded).sum(-1)[self.labels != IGNORED_LABEL]
        return float(sizes.double().log().mean().exp()) if len(sizes) else 1.0


def in_groups(queries: Float[Tensor, "b d"], truth: Truth, groups: Groups, *, drop_same: bool) -> Pairs:
    """Rows with the targets of their groups; rows without a target neither ask nor are asked about."""
    assert truth.values is not None

    def spread(rows: Tensor) -> tuple[Tensor, Tensor]:
        return group_candidates(rows, group_size=groups.size, group_ranks=groups.ranks)

    candidates, own = spread(truth.values)
    number = len(candidates)
    labels = own.view(number, -1)
    excluded = None
    if truth.keys is not None and drop_same:
        keys, _ = spread(truth.keys)
        same = equal_rows(truth.keys.view(number, -1, truth.keys.shape[-1]), keys)
        excluded = false_negatives(same, labels)
    if truth.present is not None:
        there, _ = spread(truth.present)
        missing = ~there[:, None].expand(-1, labels.shape[1], -1)
        excluded = missing if excluded is None else excluded | missing
        labels = torch.where(truth.present.view(number, -1), labels, IGNORED_LABEL)
        if excluded is not None:
            # A row that does not count still needs something to choose from.
            excluded = excluded & (labels != IGNORED_LABEL)[..., None]
    return Pairs(queries.view(number, -1, queries.shape[-1]), candidates, labels, excluded)
