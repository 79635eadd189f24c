"""One target of a pre-training recipe: which view and picture predicts what, and how likely it is.

Letters: b rows, q cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from allsight.config import Config, ConfigError, Configured
from allsight.models.m3i.decoders import NOTHING_ASKED, Decoder, Question
from allsight.models.m3i.encoder import Seen
from allsight.models.m3i.nets import Given, TargetNet, Truth
from allsight.models.m3i.posteriors import Posterior, Scored
from allsight.models.m3i.regularisers import Regulariser
from allsight.models.m3i.scene import Groups, Scene
from allsight.models.m3i.views import relative_places


@dataclass(frozen=True)
class Looked:
    """What monitors see of one posterior's call: rows of predictions and targets, without gradient."""

    prediction: Float[Tensor, "n d"]
    target: Float[Tensor, "n d"] | None
    scored: Scored


@dataclass(frozen=True)
class Term:
    """A target's loss before its weight, and what monitors look at."""

    loss: Float[Tensor, ""]
    looked: tuple[Looked, ...]


class Target(nn.Module, Configured):
    """A target network, the decoder that predicts its output, and the posterior that scores it."""

    class Config(Config):
        """Settings of a target.

        Attributes:
            net: The target network.
            decoder: From the input's representation to the prediction.
            posterior: How likely the target is, given the prediction.
            regularisers: Terms that keep a learnt target spread.
            weight: Factor on all of it.
            pairs: (input view, target view), by number; their losses are averaged, and decoder and target
                network are the same for all.
            roles: Which pictures of a mixed input predict it; None: all.
            cells: Which cells of the target view a decoder of cells is asked for: all, or those that the
                input did not show.
        """

        net: TargetNet.Config
        decoder: Decoder.Config
        posterior: Posterior.Config
        regularisers: tuple[Regulariser.Config, ...] = ()
        weight: float = Field(default=1.0, ge=0)
        pairs: tuple[tuple[int, int], ...] = ((0, 0),)
        roles: tuple[int, ...] | None = None
        cells: Literal["all", "hidden"] = "all"

        @field_validator("pairs")
        @classmethod
        def _has_pairs(cls, pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            if not pairs or min(min(pair) for pair in pairs) < 0:
                raise ValueError(f"expected at least one pair of views, numbered from 0, got {pairs}")
            return pairs

        @model_validator(mode="after")
        def _hidden_cells_are_of_one_view(self) -> Target.Config:
            if self.cells == "hidden" and any(a != b for a, b in self.pairs):
                raise ValueError(
                    f"cells='hidden' needs the target in the view of the input, got pairs={self.pairs}"
                )
            return self

    def __init__(self, config: Target.Config, channels: int, given: Given) -> None:
        super().__init__()
        self.config: Any = config
        self.net: TargetNet = config.net.build(given)
        self.decoder: Decoder = config.decoder.build(channels, self.net.width)
        self.net.attach(self.decoder)
        if self.net.is_dense and not self.decoder.is_dense:
            raise ConfigError(
                f"target network '{_kind(config.net)}' has a target for each cell, decoder "
                f"'{_kind(config.decoder)}' one prediction a picture; use decoder 'dense' or 'tokens'"
            )
        self.posterior: Posterior = config.posterior.build(self.decoder.out_channels)
        self.regularisers = nn.ModuleList(each.build() for each in config.regularisers)

    def forward(self, scene: Scene, players: Sequence[Int64[Tensor, " b"]]) -> Term:
        """The mean over pairs of views, and over the rows of all roles that have this target.

        Args:
            players: Role -> the sample that plays it in each input.
        """
        roles = range(len(players)) if self.config.roles is None else self.config.roles
        losses, counts, looked = [], [], []
        for input_view, target_view in self.config.pairs:
            found = []
            for role in roles:
                seen, rows = scene.seen[input_view][role], players[role]
                truth = self.net(scene, target_view, rows, self.decoder)
                found.append((rows, *self._predict(scene, seen, rows, input_view, target_view, truth)))
            if self.net.supervision == "caption" and sum(len(rows) for rows, *_ in found) == len(
                scene.views[0]
            ):
                # Each sample plays one role: captions are negatives of each other whatever their roles.
                found = [_in_order(found)]
            for rows, prediction, truth in found:
                size = max(1, scene.groups.size * len(rows) // len(scene.views[0]))
                scored = self.posterior(prediction, truth, Groups(size, scene.groups.ranks))
                loss = scored.loss
                target = None if truth.values is None else _rows(truth.values, truth)
                for regulariser in self.regularisers:
                    assert target is not None
                    loss = loss + regulariser(_rows(prediction, truth), target)
                losses.append(loss)
                here = len(rows) if truth.present is None else truth.present.sum()
                counts.append(torch.as_tensor(here, device=loss.device))
                looked.append(
                    Looked(
                        _rows(prediction, truth).detach(), None if target is None else target.detach(), scored
                    )
                )
        weights = torch.stack(counts).to(losses[0].dtype)
        total = (torch.stack(losses) * weights).sum() / weights.sum().clamp_min(1)
        return Term(total, tuple(looked))

    def copies(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Pairs (slow copy, what it follows)."""
        yield from self.net.copies()

    def _predict(
        self, scene: Scene, seen: Seen, rows: Tensor, input_view: int, target_view: int, truth: Truth
    ) -> tuple[Tensor, Truth]:
        """The prediction, and the targets of the cells that it is about."""
        projected = self.decoder.project(seen)
        if not self.decoder.is_dense:
            return self.decoder.predict(projected, seen, NOTHING_ASKED), truth
        target = scene.views[target_view]
        stride = scene.stride
        grid = (target.images.shape[2] // stride, target.images.shape[3] // stride)
        if self.config.cells == "hidden":
            if seen.hidden is None:
                raise ConfigError("target: cells='hidden' needs a mask, or several pictures in one input")
            cells = seen.hidden
        else:
            cells = torch.arange(grid[0] * grid[1], device=rows.device).expand(len(rows), -1)
        places = None
        if self.decoder.needs_places:
            places = relative_places(
                target.geometry[rows],
                scene.views[input_view].geometry[rows],
                cells,
                target_grid=grid,
                input_grid=seen.grid,
            )
        elif input_view != target_view:
            raise ConfigError("decoder: another view is asked for; set places='relative'")
        prediction = self.decoder.predict(projected, seen, Question(cells, grid, places))
        if truth.values is None or truth.values.ndim != 3 or truth.values.shape[1] != grid[0] * grid[1]:
            raise ConfigError("decoder of cells: the target network has no target for each cell")
        values = truth.values.take_along_dim(cells[..., None], 1) if self.config.cells == "hidden" else None
        return prediction, truth if values is None else Truth(values, present=truth.present)


def _in_order(found: Sequence[tuple[Tensor, Tensor, Truth]]) -> tuple[Tensor, Tensor, Truth]:
    """Samples, predictions and targets of all roles, in the order of the batch."""
    rows = torch.cat([rows for rows, *_ in found])
    order = rows.argsort()

    def joined(parts: Sequence[Any]) -> Any:
        return None if any(part is None for part in parts) else torch.cat(list(parts))[order]

    truths = [truth for *_, truth in found]
    names = ("values", "labels", "present", "keys")
    truth = replace(truths[0], **{name: joined([getattr(t, name) for t in truths]) for name in names})
    return rows[order], joined([prediction for _, prediction, _ in found]), truth


def _rows(values: Float[Tensor, "b *cells d"], truth: Truth) -> Float[Tensor, "n d"]:
    kept = values if truth.present is None else values[truth.present]
    return kept.flatten(0, -2)


def _kind(config: Config) -> str:
    family = config.of.family
    return family.kind_of(config.of) if family is not None else type(config).__qualname__
