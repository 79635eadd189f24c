"""Numbers that show from the first steps on whether single-stage training goes well, and alarms on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, Configured
from allsight.models.m3i.encoder import Seen
from allsight.models.m3i.target import Looked, Term
from allsight.objectives import (
    boltzmann_information,
    channel_std,
    effective_rank,
    gaussian_information,
    top_share,
    unit_std,
)

_MOST_ROWS = 2048


@torch.no_grad()
def target_numbers(name: str, term: Term) -> dict[str, Tensor]:
    """What to know of one target: its loss, how spread it is, and a bound on the information."""
    numbers = {f"{name}/loss": term.loss.detach()}
    kept = [looked for looked in term.looked if len(looked.prediction)]
    if not kept:
        return numbers
    looked = kept[0]
    numbers |= {f"{name}/{key}": value for key, value in looked.scored.values.items()}
    if looked.scored.candidates:
        hard = looked.scored.loss if looked.scored.cross_entropy is None else looked.scored.cross_entropy
        bound = torch.as_tensor(boltzmann_information(hard.detach(), looked.scored.candidates))
        # Of a set of one nothing can be learnt: a share of nothing counts as none.
        most = math.log(looked.scored.candidates) or math.inf
        numbers |= {f"{name}/information": bound, f"{name}/information_share": bound / most}
    if looked.target is not None and len(looked.target) > 1:
        numbers |= {f"{name}/{key}": value for key, value in _spread(looked).items()}
    return numbers


def _spread(looked: Looked) -> dict[str, Tensor]:
    assert looked.target is not None
    wide = torch.promote_types(looked.target.dtype, torch.float32)
    stride = -(-len(looked.target) // _MOST_ROWS)
    target, prediction = looked.target[::stride].to(wide), looked.prediction[::stride].to(wide)
    numbers = {
        "target_std": unit_std(target),
        "target_channel_std": channel_std(target),
        "target_rank": effective_rank(target),
        # Of this rank alone: how many rows have a target differs between ranks, and some may have none.
        "top_share": top_share(target.T @ target / len(target)),
    }
    if not looked.scored.candidates and prediction.shape == target.shape:
        residual = (target - prediction).square().mean(0)
        numbers["information"] = gaussian_information(target.var(0), residual)
    return numbers


@torch.no_grad()
def feature_numbers(seen: Seen) -> dict[str, Tensor]:
    """How spread the representation itself is, one vector a picture, and how much of it is place alone."""
    pooled = seen.tokens.mean(1)
    numbers = {"features/std": unit_std(pooled), "features/rank": effective_rank(pooled)}
    return numbers | {"features/place_share": place_share(seen)}


@torch.no_grad()
def place_share(seen: Seen) -> Float[Tensor, ""]:
    """Share of the variance of cells that their place in the grid explains: 0 none, 1 all, whatever is shown.

    The variance between places is what is left of that of their means when the part that few pictures a place
    leave by chance is taken away (one-way analysis of variance with random effects).
    """
    rows = seen.tokens.flatten(0, 1).to(torch.promote_types(seen.tokens.dtype, torch.float32))
    where, places = seen.cells.flatten(), seen.grid[0] * seen.grid[1]
    counts = rows.new_zeros(places).index_add_(0, where, rows.new_ones(len(rows)))
    means = rows.new_zeros(places, rows.shape[1]).index_add_(0, where, rows) / counts.clamp_min(1)[:, None]
    used = (counts > 0).sum()
    within = (rows - means[where]).square().sum() / (len(rows) - used).clamp_min(1)
    between = (means - rows.mean(0)).square().sum(1) @ counts / (used - 1).clamp_min(1)
    each = (len(rows) - counts.square().sum() / len(rows)) / (used - 1).clamp_min(1)
    of_place = ((between - within) / each.clamp_min(1e-30)).clamp_min(0)
    return of_place / (of_place + within).clamp_min(torch.finfo(rows.dtype).tiny)


@dataclass(frozen=True)
class Pull:
    """A target's gradient at the representation.

    Args:
        norm: Over all cells.
        pictures: Its sum over the cells of each picture, in whichever inputs and roles it occurs. Targets of
            different roles look at different cells, whose gradients could not agree or disagree.
    """

    norm: Float[Tensor, ""]
    pictures: Float[Tensor, "b c"]


def gradient_numbers(gradients: Mapping[str, Pull]) -> dict[str, Tensor]:
    """Norms of the targets' gradients at the representation, their shares, and the cosines between them."""
    norms = {name: pull.norm for name, pull in gradients.items()}
    total = torch.stack(list(norms.values())).sum().clamp_min(1e-30)
    numbers: dict[str, Tensor] = {}
    for name, norm in norms.items():
        numbers |= {f"{name}/gradient": norm, f"{name}/gradient_share": norm / total}
    names = list(gradients)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = gradients[one].pictures.flatten(), gradients[other].pictures.flatten()
            numbers[f"{one}~{other}/cosine"] = a @ b / (a.norm() * b.norm()).clamp_min(1e-30)
    return numbers


@torch.no_grad()
def distance(copies: Sequence[tuple[nn.Module, nn.Module]]) -> Tensor:
    """Distance of slow copies from what they follow, as a share of the norm of the latter."""
    apart, whole = [], []
    for copied, followed in copies:
        for own, other in zip(copied.parameters(), followed.parameters(), strict=True):
            apart.append((own - other.detach()).norm())
            whole.append(other.detach().norm())
    return torch.stack(apart).norm() / torch.stack(whole).norm().clamp_min(1e-30)


class Watch(nn.Module, Configured):
    """Turns monitors into alarms; what it compares with is kept in buffers, so that a resumed run knows it.

    The thresholds are our proposals.
    """

    class Config(Config):
        """Settings.

        Attributes:
            every_steps: Monitors are computed each so many steps; None never.
            reference_step: Spread of targets is compared with what it was here ...
            least_std: ... and must not fall below this share of it, ...
            least_rank: ... nor the effective rank below this share of what it was in the first step.
            least_feature_std: Share of its first value that the spread of the representation must keep.
            largest_top_share: Share of the largest eigenvalue of a dense target's second moment.
            least_information_share: Of log N, below which a choice counts as pinned at chance.
            largest_gradient_share: Of one target.
            patience_steps: How long a scale may stand at its limit, a choice at chance, one gradient alone, a
                target without a single row that has it.
            spread_patience_steps: How long the largest eigenvalue may be too large.
        """

        every_steps: int | None = Field(default=50, ge=1)
        reference_step: int = Field(default=1000, ge=0)
        least_std: float = Field(default=0.05, ge=0)
        least_rank: float = Field(default=0.1, ge=0)
        least_feature_std: float = Field(default=0.5, ge=0)
        largest_top_share: float = Field(default=0.82, gt=0)
        least_information_share: float = Field(default=0.02, ge=0)
        largest_gradient_share: float = Field(default=0.95, gt=0)
        patience_steps: int = Field(default=1000, ge=0)
        spread_patience_steps: int = Field(default=200, ge=0)

    references: Tensor
    begun: Tensor

    def __init__(
        self,
        config: Watch.Config,
        names: Sequence[str],
        limits: Mapping[str, float],
        supervision: Sequence[str] = (),
    ) -> None:
        """Watch over targets.

        Args:
            config: Settings.
            names: The targets.
            limits: Target -> largest scale, where its scale is held at one.
            supervision: What rows must bring for some target, `label` or `caption`.
        """
        super().__init__()
        self.config, self.names, self.limits = config, tuple(names), dict(limits)
        self.supervision = tuple(supervision)
        self._kept = ["features/std", "features/rank"]
        for name in names:
            self._kept += [f"{name}/target_std", f"{name}/target_rank", f"{name}/target_std at start"]
        self._rules = ["features/std", "features/rank", *(f"supervised/{kind}" for kind in supervision)]
        for name in names:
            self._rules += [f"{name}/{rule}" for rule in ("std", "rank", "top", "chance", "scale", "share")]
        # Not a number: not yet known; -1: the rule is kept; NaN and -2: its alarm was given.
        self.register_buffer("references", torch.full((len(self._kept),), math.nan, dtype=torch.float64))
        self.register_buffer("begun", torch.full((len(self._rules),), -1, dtype=torch.int64))

    def is_due(self, step: int) -> bool:
        every = self.config.every_steps
        return every is not None and step % every == 0

    def alarms(self, step: int, values: Mapping[str, float]) -> tuple[str, ...]:
        """What to warn of; each alarm is given once until its cause is gone.

        Args:
            values: The monitors of this step, over all ranks.
        """
        found = []
        for rule, is_broken, patience, text in self._judge(step, values):
            place = self._rules.index(rule)
            since = int(self.begun[place])
            if not is_broken:
                self.begun[place] = -1
            elif since == -1:
                since = step
                self.begun[place] = step
            if is_broken and since >= 0 and step - since >= patience:
                self.begun[place] = -2
                found.append(f"step {step}: {text}")
        return tuple(found)

    def _judge(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, bool, int, str]]:
        config = self.config
        for what, least in (("std", config.least_feature_std), ("rank", config.least_rank)):
            key = f"features/{what}"
            if key in values:
                yield self._against_start(key, values[key], least, "the representation", what)
        for kind in self.supervision:
            share = values.get(f"supervised/{kind}")
            if share is not None:
                text = (
                    f"no picture of the steps looked at has had a {kind} for {config.patience_steps} steps; "
                    "check the data, or take out the targets that need one"
                )
                yield f"supervised/{kind}", share == 0, config.patience_steps, text
        for name in self.names:
            std = values.get(f"{name}/target_std")
            if std is not None:
                start = self._reference(f"{name}/target_std at start", std)
                late = f"{name}/target_std"
                if step >= config.reference_step:
                    start = self._reference(late, std)
                yield (
                    f"{name}/std",
                    std < config.least_std * start,
                    0,
                    f"target '{name}' collapses: its spread is {std:.3g}, {std / max(start, 1e-12):.1%} of "
                    f"what it was; raise a regulariser, or slow the momentum copy",
                )
            rank = values.get(f"{name}/target_rank")
            if rank is not None:
                key, value = f"{name}/target_rank", rank
                first = self._reference(key, value)
                yield (
                    f"{name}/rank",
                    value < config.least_rank * first,
                    0,
                    f"target '{name}': effective rank {value:.3g}, {first:.3g} at the start",
                )
            yield from self._judge_rest(name, values)

    def _judge_rest(self, name: str, values: Mapping[str, float]) -> Iterator[tuple[str, bool, int, str]]:
        config = self.config
        top, share = values.get(f"{name}/top_share"), values.get(f"{name}/gradient_share")
        chance, scale = values.get(f"{name}/information_share"), values.get(f"{name}/scale")
        if top is not None:
            yield (
                f"{name}/top",
                top > config.largest_top_share,
                config.spread_patience_steps,
                f"target '{name}': {top:.0%} of its second moment lies in one direction; raise the "
                "covariance term, or centre or batch-normalise the targets",
            )
        if chance is not None:
            yield (
                f"{name}/chance",
                chance < config.least_information_share,
                config.patience_steps,
                f"target '{name}': its cross-entropy is that of guessing",
            )
        if scale is not None and name in self.limits:
            yield (
                f"{name}/scale",
                scale >= 0.999 * self.limits[name],
                config.patience_steps,
                f"target '{name}': its scale stands at its limit of {self.limits[name]:g}",
            )
        if share is not None and len(self.names) > 1:
            yield (
                f"{name}/share",
                share > config.largest_gradient_share,
                config.patience_steps,
                f"target '{name}' makes {share:.0%} of the gradient at the representation; lower its weight",
            )

    def _against_start(
        self, key: str, value: float, least: float, whose: str, what: str
    ) -> tuple[str, bool, int, str]:
        first = self._reference(key, value)
        text = f"{whose} shrinks: its {what} is {value:.3g}, it was {first:.3g} at the start"
        return key, value < least * first, 0, text

    def _reference(self, key: str, value: float) -> float:
        place = self._kept.index(key)
        if math.isnan(float(self.references[place])):
            self.references[place] = value
        return float(self.references[place])
