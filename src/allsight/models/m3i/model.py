"""M3I: pre-training of every kind as one objective, a list of targets that inputs predict.

Letters: b rows, n pictures in one input, p cells, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import model_validator
from torch import Tensor, nn

from allsight.backbones import Backbone
from allsight.config import ConfigError, Mixture
from allsight.models.base import TaskModel, TaskOfModel
from allsight.models.m3i.balancing import Balancer, Fixed
from allsight.models.m3i.decoders import NOTHING_ASKED, Pooled
from allsight.models.m3i.encoder import Encoder, NeckName, Seen
from allsight.models.m3i.mixing import (
    count_random,
    count_rectangles,
    draw_hidden,
    draw_hidden_rectangles,
    draw_owners,
    mix,
    split_counts,
    to_cells,
)
from allsight.models.m3i.monitors import (
    Pull,
    Watch,
    distance,
    feature_numbers,
    gradient_numbers,
    target_numbers,
)
from allsight.models.m3i.nets import Category, Given, Momentum, Text, follow, slow_copy
from allsight.models.m3i.options import Mask, Mixer, MomentumSchedule
from allsight.models.m3i.posteriors import Boltzmann
from allsight.models.m3i.scene import Captions, Groups, Scene
from allsight.models.m3i.target import Target, Term
from allsight.models.m3i.views import Grid, View
from allsight.types import Batch, Outputs, State


@dataclass(frozen=True)
class Explained:
    """What the model did with a batch, for people to look at.

    Args:
        inputs: The first view as the encoder saw it, mixed of several pictures; pixels as in the batch.
        players: Role -> the sample that plays it in each input.
        grid: Cells of a view.
        terms: Target -> its loss, predictions and targets, role by role of those that predict it.
    """

    inputs: Shaped[Tensor, "n 3 h w"]
    players: tuple[Int64[Tensor, " n"], ...]
    grid: Grid
    terms: Mapping[str, Term]


class M3I(TaskModel):
    """Maximises the information between representations of inputs and of targets, in one stage.

    An input is a view of a picture, whole, masked, or mixed of several. `targets` say what is predicted from
    it: other pixels, features of this or another view, a category, a caption. Supervised, image-text and
    self-supervised pre-training are settings of it; docs/m3i.md prints them.

    Batches hold `views` (a tuple of [b, 3, h, w]), `geometry` (a tuple of [b, 6], see `allsight.types.Crop`)
    and `seed` [b] among the inputs, and perhaps `label` [b] (-100: none), and `tokens`, `is_token` [b, t]
    and `captioned` [b] among the targets. Outputs are `losses`: one for each target of images, and `label`
    and `caption`, which are means over the rows that have one; in evaluation also `logits`.

    Source: Towards All-in-one Pre-training via Maximizing Multi-modal Mutual Information, arXiv:2211.09807.
    """

    class Config(TaskModel.Config):
        """Settings.

        Attributes:
            backbone: What is to be trained.
            neck: How one grid is made of its maps.
            mixer: How several pictures become one input.
            mask: What an input of one picture hides.
            targets: Name -> target. `label` and `caption` are kept for sums over targets of that kind.
            momentum: How slowly the copies of targets with `net.kind=momentum` follow.
            balancer: How much each target counts.
            watch: Monitors and alarms.
        """

        backbone: Backbone.Config
        neck: NeckName = "last"
        mixer: Mixer = Mixer()
        mask: Mask = Mask()
        targets: Mixture[Target.Config]
        momentum: MomentumSchedule = MomentumSchedule()
        balancer: Balancer.Config = Fixed.Config()
        watch: Watch.Config = Watch.Config()

        @model_validator(mode="after")
        def _fits_together(self) -> M3I.Config:
            if not self.targets:
                raise ValueError("targets: expected at least one")
            if self.mixer.pictures > 1 and self.mask.ratio > 0:
                raise ValueError("mask: an input mixed of several pictures hides enough; set mask.ratio=0")
            for name, target in self.targets.items():
                roles = target.roles or ()
                if roles and max(roles) >= self.mixer.pictures:
                    raise ValueError(
                        f"targets.{name}.roles: {roles}, but mixer.pictures={self.mixer.pictures}"
                    )
            return self

    config: M3I.Config

    def __init__(self, config: M3I.Config, tasks: Mapping[str, TaskOfModel]) -> None:
        super().__init__(config, tasks)
        hides = config.mask.ratio > 0 and config.mask.how == "token"
        self.encoder = Encoder(config.backbone, neck=config.neck, hides=hides)
        if config.mask.ratio > 0 and not hides and not self.encoder.is_transformer:
            raise ConfigError(
                "config.model.mask.how: 'drop' needs a transformer; set 'token', or mix pictures in its place"
            )
        given = Given(
            _shared(tasks, "num_classes"),
            _shared({name: getattr(task, "tokenizer", None) for name, task in tasks.items()}, "vocab_size"),
            self.encoder.stride,
        )
        self.targets = nn.ModuleDict()
        for name, target in config.targets.items():
            try:
                self.targets[name] = target.build(self.encoder.channels, given)
            except ConfigError as error:
                raise ConfigError(f"config.model.targets.{name}: {error}") from None
        nets = [target.net for target in self._targets().values()]
        self.momentum_encoder: nn.Module | None = None
        if any(isinstance(net, Momentum) for net in nets):
            self.momentum_encoder = slow_copy(self.encoder)
        posteriors = {name: target.posterior for name, target in self._targets().items()}
        scales = [posterior.learns_scale for posterior in posteriors.values()]
        self.balancer: Balancer = config.balancer.build(list(self.targets), scales)
        limits = {
            name: posterior.config.max_scale
            for name, posterior in posteriors.items()
            if isinstance(posterior, Boltzmann) and posterior.learns_scale
        }
        supervision = sorted({net.supervision for net in nets} - {"image"})
        self.watch: Watch = config.watch.build(list(self.targets), limits, supervision)
        self.steps: Tensor
        # A constant: the planner, which runs models without memory, can read it too.
        self.register_buffer("steps", torch.tensor(0))
        self._step: int | None = None
        self._run_steps: int | None = None
        self._was_due = False
        self._seen: list[dict[str, Tensor]] = []

    @property
    def backbone(self) -> Backbone:
        """What is trained."""
        return self.encoder.backbone

    def forward(self, batch: Batch, state: State = None) -> tuple[Outputs, State]:
        """Losses of a batch; there is no temporal state.

        Raises:
            ValueError: The batch has no views, fewer than the targets ask for, or none of their supervision.
        """
        scene, players = self._scene(batch)
        terms = self._terms(batch, scene, players)
        weighted = {
            name: self.balancer(name, self._targets()[name].config.weight * term.loss)
            for name, term in terms.items()
        }
        step = self._number() if self.training else -1
        if self.training and (self.watch.is_due(step) or self.balancer.wants_norms(step)):
            self._look(step, scene, players, terms, weighted)
        outputs: dict[str, Any] = {"losses": self._by_supervision(weighted)}
        if not self.training:
            logits = self._logits(scene)
            if logits is not None:
                outputs["logits"] = logits
        return outputs, None

    @torch.no_grad()
    def explain(self, batch: Batch) -> Explained:
        """What inputs look like, and what is predicted from them. Errors as `forward`."""
        scene, players = self._scene(batch)
        first, mixer = batch.inputs["views"][0], self.config.mixer
        inputs = first
        if mixer.pictures > 1:
            blocks = self._blocks(scene.views[0], mixer.block_px, "mixer")
            shares = mixer.shares or (1.0,) * mixer.pictures
            owners = draw_owners(batch.inputs["seed"][players[0]], blocks, shares)
            inputs = mix([first[rows] for rows in players], owners, blocks)
        terms = self._terms(batch, scene, players)
        return Explained(inputs, tuple(players), self.encoder.grid_of(first), terms)

    def _terms(self, batch: Batch, scene: Scene, players: list[Tensor]) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        for name, target in self._targets().items():
            has = {"image": True, "label": scene.labels, "caption": scene.captions}[target.net.supervision]
            if has is not None:
                terms[name] = target(scene, players)
        if not terms:
            raise ValueError(
                f"task '{batch.task}': none of the targets {', '.join(self.targets)} has its supervision: no "
                "label and no caption; give the task one, or the model a target of images"
            )
        return terms

    def embed_pictures(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Whole views in the space of captions; directions count.

        Raises:
            ConfigError: No target of captions.
        """
        target = self._caption_target()
        seen = self.encoder.whole(images)
        return target.decoder.predict(target.decoder.project(seen), seen, NOTHING_ASKED)

    def embed_captions(
        self, tokens: Int64[Tensor, "k t"], is_token: Bool[Tensor, "k t"]
    ) -> Float[Tensor, "k d"]:
        """Captions in the space of pictures; directions count. Errors as `embed_pictures`."""
        net = self._caption_target().net
        assert isinstance(net, Text)
        return net.embed(tokens, is_token)

    def _caption_target(self) -> Target:
        for target in self._targets().values():
            if isinstance(target.net, Text):
                return target
        raise ConfigError(
            f"m3i: none of the targets {', '.join(self.targets)} is of captions, so pictures and words have "
            "no space in common; train with one (cases.m3i(captions=True))"
        )

    def expect_steps(self, steps: int) -> None:
        """The decay of slow copies reaches its end with the run."""
        self._run_steps = steps

    def after_step(self, step: int) -> None:
        """Slow copies follow; clamps, queues, centres and factors are brought up to date."""
        decay = self.config.momentum.decay(step, self._run_steps)
        for copied, followed in self._copies():
            follow(copied, followed, decay)
        for target in self._targets().values():
            target.posterior.advance()
        self.balancer.advance(step)
        self._was_due = self.watch.is_due(self._number())
        self._step = self._number() + 1
        self.steps.fill_(self._step)

    def monitors(self, step: int) -> Mapping[str, float] | None:
        """What was seen in this step, as means over micro-batches; None between watched steps."""
        seen, self._seen = self._seen, []
        # Decided by the count of steps, not by what was seen: a rank may have had no rows.
        if not self._was_due:
            return None
        numbers: dict[str, list[Tensor]] = {}
        for each in seen:
            for name, value in each.items():
                numbers.setdefault(name, []).append(value.to(torch.float32).cpu())
        if self.momentum_encoder is not None:
            numbers["momentum/distance"] = [distance(list(self._copies())).to(torch.float32).cpu()]
        return {name: float(torch.stack(values).mean()) for name, values in numbers.items()}

    def alarms(self, step: int, values: Mapping[str, float]) -> tuple[str, ...]:
        """What to warn of; see `Watch`."""
        return self.watch.alarms(step, values)

    def _targets(self) -> dict[str, Target]:
        return dict(self.targets.items())  # type: ignore[arg-type]

    def _copies(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        if self.momentum_encoder is not None:
            yield self.momentum_encoder, self.encoder
        for target in self._targets().values():
            yield from target.copies()

    def _number(self) -> int:
        """Steps done so far; read from the buffer once, after a checkpoint was loaded."""
        if self._step is None:
            self._step = int(self.steps)
        return self._step

    def _scene(self, batch: Batch) -> tuple[Scene, list[Int64[Tensor, " b"]]]:
        """The batch with its inputs encoded, and role -> the sample that plays it in each input."""
        views = batch.inputs.get("views")
        if not isinstance(views, tuple):
            raise ValueError(
                f"task '{batch.task}': m3i needs a tuple of views among the inputs (task 'pretraining'), "
                f"got {sorted(batch.inputs)}"
            )
        wanted = 1 + max(max(pair) for target in self._targets().values() for pair in target.config.pairs)
        if len(views) < wanted:
            raise ValueError(f"task '{batch.task}': {len(views)} views; the targets ask for {wanted}")
        pairs = [View(*pair) for pair in zip(views, batch.inputs["geometry"], strict=True)]
        words = batch.targets.get("tokens")
        captions = None
        if words is not None:
            captions = Captions(words, batch.targets["is_token"], batch.targets["captioned"])
        # Where nothing is learnt, all rows may see each other: groups only say what a step's negatives are.
        groups = Groups(batch.group_size, batch.group_ranks) if self.training else Groups(len(batch))
        mixer, mask = self.config.mixer, self.config.mask
        players = self._players(batch)
        scene = Scene(
            pairs,
            batch.targets.get("label"),
            captions,
            groups,
            online=self.encoder,
            momentum=self.momentum_encoder,  # type: ignore[arg-type]
            is_whole=mixer.pictures == 1 and mask.ratio == 0,
            momentum_rows=self._momentum_rows(players, len(batch)),
        )
        seeds = batch.inputs["seed"]
        for number in sorted({a for t in self._targets().values() for a, _ in t.config.pairs}):
            scene.seen[number] = self._encode(pairs[number], players, seeds + number)
        return scene, players

    def _players(self, batch: Batch) -> list[Int64[Tensor, " b"]]:
        pictures, count = self.config.mixer.pictures, len(batch)
        device = batch.inputs["seed"].device
        if count % pictures:
            if self.training:
                raise ConfigError(
                    f"task '{batch.task}': {count} rows on this rank cannot be mixed {pictures} at a time; "
                    f"set group_size to a multiple of {pictures}"
                )
            count += -count % pictures
        groups = torch.arange(count, device=device).view(-1, pictures)
        if self.config.mixer.roles == "rotate":
            roles = [groups.roll(-role, 1).flatten() for role in range(pictures)]
        else:
            roles = list(groups.unbind(1))
        return [role % len(batch) for role in roles]

    def _momentum_rows(self, players: list[Tensor], count: int) -> dict[int, Tensor]:
        """View -> samples whose slow features some target wants, where these are not all."""
        wanted: dict[int, set[int]] = {}
        for target in self._targets().values():
            if isinstance(target.net, Momentum):
                roles = range(len(players)) if target.config.roles is None else target.config.roles
                for _, view in target.config.pairs:
                    wanted.setdefault(view, set()).update(roles)
        rows = {view: torch.cat([players[role] for role in sorted(roles)]) for view, roles in wanted.items()}
        return {view: some for view, some in rows.items() if len(some) < count}

    def _encode(self, view: View, players: list[Tensor], seeds: Int64[Tensor, " b"]) -> list[Seen]:
        """What the encoder makes of one input view, role by role."""
        mixer, mask = self.config.mixer, self.config.mask
        if mixer.pictures > 1:
            blocks = self._blocks(view, mixer.block_px, "mixer")
            shares = mixer.shares or (1.0,) * mixer.pictures
            owners = draw_owners(seeds[players[0]], blocks, shares)
            pictures = [view.images[rows] for rows in players]
            counts = split_counts(blocks[0] * blocks[1], shares)
            separate = mixer.attention == "separate"
            return self.encoder.mixed(pictures, owners, blocks, counts, separate=separate)
        if mask.ratio == 0:
            return [self.encoder.whole(view.images)]
        blocks = self._blocks(view, mask.block_px, "mask")
        draw, number = draw_hidden_rectangles, count_rectangles
        if mask.shape == "random":
            draw, number = draw_hidden, count_random
        factor = mask.block_px // self.encoder.stride
        hidden = to_cells(draw(seeds, blocks, mask.ratio), blocks, factor)
        count = number(blocks[0] * blocks[1], mask.ratio) * factor**2
        return [self.encoder.masked(view.images, hidden, count, drop=mask.how == "drop")]

    def _blocks(self, view: View, block_px: int, what: str) -> Grid:
        height, width = view.images.shape[2:]
        if block_px % self.encoder.stride or height % block_px or width % block_px:
            raise ConfigError(
                f"config.model.{what}.block_px: {block_px} px must be whole cells of {self.encoder.stride} "
                f"px and divide the views of {height} x {width} px"
            )
        return height // block_px, width // block_px

    def _by_supervision(self, weighted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Targets of images under their names; sums of those of labels and of captions."""
        losses: dict[str, Tensor] = {}
        for name, loss in weighted.items():
            kind = self._targets()[name].net.supervision
            key = name if kind == "image" else kind
            losses[key] = losses[key] + loss if key in losses else loss
        return losses

    def _look(
        self,
        step: int,
        scene: Scene,
        players: list[Tensor],
        terms: Mapping[str, Term],
        weighted: Mapping[str, Tensor],
    ) -> None:
        """Compute the monitors of this micro-batch."""
        gradients = self._pulls(scene, players, weighted)
        if self.balancer.wants_norms(step):
            self.balancer.see({name: pull.norm for name, pull in gradients.items()})
        if not self.watch.is_due(step):
            return
        numbers = gradient_numbers(gradients) if gradients else {}
        for name, term in terms.items():
            numbers |= target_numbers(name, term)
        first = next(iter(scene.seen.values()))[0]
        numbers |= feature_numbers(first)
        numbers |= {f"{name}/factor": factor for name, factor in self.balancer.numbers().items()}
        rows = len(scene.views[0])
        shares = {
            "label": 0 if scene.labels is None else (scene.labels >= 0).sum() / rows,
            "caption": 0 if scene.captions is None else scene.captions.present.sum() / rows,
        }
        numbers |= {f"supervised/{name}": torch.as_tensor(share) for name, share in shares.items()}
        self._seen.append({name: number.detach() for name, number in numbers.items()})

    def _pulls(self, scene: Scene, players: list[Tensor], weighted: Mapping[str, Tensor]) -> dict[str, Pull]:
        """Each target's gradient at what the encoder made of the inputs."""
        places = [
            (tensor, rows)
            for roles in scene.seen.values()
            for seen, rows in zip(roles, players, strict=True)
            for tensor in (seen.tokens, seen.summary)
            if tensor is not None and tensor.requires_grad
        ]
        pulls = {}
        for name, loss in weighted.items():
            if not places or not loss.requires_grad:
                continue
            inputs = [tensor for tensor, _ in places]
            found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
            pictures = places[0][0].new_zeros(len(scene.views[0]), self.encoder.channels)
            pictures = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
            square = pictures.new_zeros(())
            for gradient, (_, rows) in zip(found, places, strict=True):
                if gradient is not None:
                    wide = gradient.to(pictures.dtype)
                    square = square + wide.square().sum()
                    pictures.index_add_(0, rows, wide if wide.ndim == 2 else wide.sum(1))
            pulls[name] = Pull(square.sqrt(), pictures)
        return pulls

    def _logits(self, scene: Scene) -> Float[Tensor, "b k"] | None:
        """Classes of whole views by the first target of categories, if there is one."""
        for target in self._targets().values():
            if isinstance(target.net, Category) and isinstance(target.decoder, Pooled):
                seen = scene.online(0, gradient=False)
                decoder = target.decoder
                return target.net.table(decoder.predict(decoder.project(seen), seen, NOTHING_ASKED))
        return None


def _shared(owners: Mapping[str, Any], attribute: str) -> int | None:
    """The value that all owners have which have any.

    Raises:
        ConfigError: They have different ones.
    """
    found = {name: getattr(owner, attribute, None) for name, owner in owners.items()}
    known = {name: value for name, value in found.items() if value is not None}
    if len(set(known.values())) > 1:
        raise ConfigError(f"config.tasks: one model, but {attribute} differs: {known}")
    return next(iter(known.values()), None)
