"""Target networks: from a target to the vector that is to be predicted.

Letters: b rows, p cells, d channels, k classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import Field
from torch import Tensor, nn

from allsight.backbones import Backbone
from allsight.config import Config, ConfigError, Configured, Family
from allsight.layers import DropPath
from allsight.models.m3i.decoders import Decoder
from allsight.models.m3i.encoder import Encoder, NeckName
from allsight.models.m3i.scene import Scene
from allsight.models.m3i.text import TextEncoder
from allsight.objectives import num_ranks, sum_of_rows

NETS = Family(
    "target network",
    {
        "category": "allsight.models.m3i.nets:Category",
        "frozen": "allsight.models.m3i.nets:Frozen",
        "momentum": "allsight.models.m3i.nets:Momentum",
        "online": "allsight.models.m3i.nets:Online",
        "pixels": "allsight.models.m3i.nets:Pixels",
        "text": "allsight.models.m3i.nets:Text",
    },
)

Supervision = Literal["image", "label", "caption"]


@dataclass(frozen=True)
class Truth:
    """Targets of some rows.

    Args:
        values: Vectors, of each row or of each of its cells.
        labels: Places in `candidates`, -100 where nobody knows.
        candidates: The set that labels are places in, with `bias` added to similarities.
        present: Rows that have a target; None: all.
        keys: What makes two targets the same (token ids); None: no two are.
    """

    values: Float[Tensor, "b *cells d"] | None = None
    labels: Int64[Tensor, " b"] | None = None
    candidates: Float[Tensor, "k d"] | None = None
    bias: Float[Tensor, " k"] | None = None
    present: Bool[Tensor, " b"] | None = None
    keys: Int64[Tensor, "b t"] | None = None


class Given(NamedTuple):
    """What tasks and model tell target networks: classes, words, and the side of a cell."""

    num_classes: int | None
    vocab_size: int | None
    stride: int


class TargetNet(nn.Module, Configured):
    """Base of all target networks; built as `Class(config, given)`, then `attach`ed to its decoder."""

    class Config(Config):
        pass

    family: ClassVar[Family | None] = NETS
    supervision: ClassVar[Supervision] = "image"
    is_dense: ClassVar[bool] = False
    """Whether targets are those of cells whatever the decoder is."""
    width: int | None = None
    """Width that predictions must have; None: that of the decoder."""

    def __init__(self, config: Any, given: Given) -> None:
        super().__init__()
        self.config = config

    def attach(self, decoder: Decoder) -> None:
        """Make what depends on the decoder."""

    def forward(self, scene: Scene, view: int, rows: Int64[Tensor, " b"], decoder: Decoder) -> Truth:
        """Targets of some rows of the batch, all cells of them."""
        raise NotImplementedError(f"{type(self).__name__} has no targets")

    def copies(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Pairs (slow copy, what it follows)."""
        yield from ()


class Pixels(TargetNet):
    """The pixels of each cell of the target view, as the identity would give them."""

    class Config(TargetNet.Config):
        """Settings.

        Attributes:
            normalise: Bring each cell to mean 0 and variance 1 (MAE).
        """

        normalise: bool = True

    is_dense: ClassVar[bool] = True

    def __init__(self, config: Pixels.Config, given: Given) -> None:
        super().__init__(config, given)
        self.side_px = given.stride
        self.width = 3 * given.stride**2

    def forward(self, scene: Scene, view: int, rows: Int64[Tensor, " b"], decoder: Decoder) -> Truth:
        images = scene.pixels(view)[rows]
        side = self.side_px
        cells = F.unfold(images, side, stride=side).unflatten(1, (3, side * side))
        values = cells.permute(0, 3, 2, 1).flatten(2)  # [b, p, (row column rgb)]
        if self.config.normalise:
            mean, variance = values.mean(-1, keepdim=True), values.var(-1, keepdim=True)
            values = (values - mean) / (variance + 1e-6).sqrt()
        return Truth(values)


class Category(TargetNet):
    """A learnt vector for each class: the rows of a classifier."""

    class Config(TargetNet.Config):
        """Settings.

        Attributes:
            num_classes: None: as many as the task has.
            bias: Whether each class has a bias.
        """

        num_classes: int | None = Field(default=None, ge=1)
        bias: bool = True

    supervision: ClassVar[Supervision] = "label"

    def __init__(self, config: Category.Config, given: Given) -> None:
        super().__init__(config, given)
        count = config.num_classes or given.num_classes
        if count is None:
            raise ConfigError(
                "target network 'category': no task says how many classes there are; set num_classes"
            )
        self.num_classes = count
        self.table: nn.Linear

    def attach(self, decoder: Decoder) -> None:
        self.table = nn.Linear(decoder.out_channels, self.num_classes, bias=self.config.bias)
        nn.init.trunc_normal_(self.table.weight, std=0.02)
        if self.config.bias:
            nn.init.zeros_(self.table.bias)

    def forward(self, scene: Scene, view: int, rows: Int64[Tensor, " b"], decoder: Decoder) -> Truth:
        if scene.labels is None:
            raise ConfigError("target network 'category': the batch has no labels; the task must give them")
        labels = scene.labels[rows]
        return Truth(None, labels, self.table.weight, self.table.bias, labels >= 0)


class Text(TargetNet):
    """The caption, through a transformer and a linear layer that learn, or stand still."""

    class Config(TargetNet.Config):
        """Settings.

        Attributes:
            encoder: The transformer.
            vocab_size: None: as many words as the task's tokenizer has.
            frozen: Whether it stands still.
        """

        encoder: TextEncoder.Config = TextEncoder.Config()
        vocab_size: int | None = Field(default=None, ge=1)
        frozen: bool = False

    supervision: ClassVar[Supervision] = "caption"

    def __init__(self, config: Text.Config, given: Given) -> None:
        super().__init__(config, given)
        count = config.vocab_size or given.vocab_size
        if count is None:
            raise ConfigError("target network 'text': no task has a tokenizer; give one, or set vocab_size")
        self.encoder = TextEncoder(config.encoder, count)
        self.projection: nn.Linear

    def attach(self, decoder: Decoder) -> None:
        self.projection = nn.Linear(self.config.encoder.channels, decoder.out_channels, bias=False)
        if self.config.frozen:
            self.requires_grad_(False)

    def forward(self, scene: Scene, view: int, rows: Int64[Tensor, " b"], decoder: Decoder) -> Truth:
        if scene.captions is None:
            raise ConfigError("target network 'text': the batch has no captions; the task must give them")
        captions = scene.captions
        tokens = captions.tokens[rows]
        values = self.embed(tokens, captions.is_token[rows])
        return Truth(values, present=captions.present[rows], keys=tokens)

    def embed(self, tokens: Int64[Tensor, "b t"], is_token: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        """Captions as targets."""
        return self.projection(self.encoder(tokens, is_token))


class Online(TargetNet):
    """The encoder and projector that learn, on the target view."""

    class Config(TargetNet.Config):
        """Settings.

        Attributes:
            stop_gradient: Whether targets get no gradient.
            normalise: Layer norm without weights on each target vector.
        """

        stop_gradient: bool = True
        normalise: bool = False

    def forward(self, scene: Scene, view: int, rows: Int64[Tensor, " b"], decoder: Decoder) -> Truth:
        stops = self.config.stop_gradient
        seen = scene.online(view, gradient=not stops)
        with torch.no_grad() if stops else torch.enable_grad():
            values = decoder.projector(seen)[rows]
        return Truth(_normalised(values) if self.config.normalise else values)


class Momentum(TargetNet):
    """Slow copies of encoder and projector, on the target view, whole and unmasked; never a gradient."""

    class Config(TargetNet.Config):
        """Settings.

        Attributes:
            centre: Take away first what all pictures of the step have in common at the cell: the mean of the
                network there. Else a network that knows the place of a cell, and nothing of the picture, is
                predicted without fault, and nothing keeps a small one from becoming that [D].
            normalise: Layer norm without weights on each target vector.
        """

        centre: bool = False
        normalise: bool = False

    def __init__(self, config: Momentum.Config, given: Given) -> None:
        super().__init__(config, given)
        self.projector: nn.Module

    def attach(self, decoder: Decoder) -> None:
        self.projector = slow_copy(decoder.projector)
        self._followed = (decoder.projector,)

    def forward(self, scene: Scene, view: int, rows: Int64[Tensor, " b"], decoder: Decoder) -> Truth:
        with torch.no_grad():
            values = self.projector(scene.momentum(view))[scene.momentum_places(view, rows)]
            if self.config.centre:
                values = self._centred(values)
            return Truth(_normalised(values) if self.config.normalise else values)

    def _centred(self, values: Float[Tensor, "b *cells d"]) -> Float[Tensor, "b *cells d"]:
        if self.training:
            total, count = sum_of_rows(values)
        else:
            # In evaluation ranks may have different numbers of batches.
            total, count = values.sum(0, dtype=torch.promote_types(values.dtype, torch.float32)), len(values)
        if self.training and len(values) * num_ranks() < 2:
            raise ConfigError(
                "target network 'momentum': centre=true needs two pictures or more that play the role; raise "
                "the batch size, or set centre=false"
            )
        return values - total / count

    def copies(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        yield self.projector, self._followed[0]


class Frozen(TargetNet):
    """A network that stands still: a teacher."""

    class Config(TargetNet.Config):
        """Settings.

        Attributes:
            backbone: The teacher.
            neck: As of the model's encoder.
            weights: File of its published weights; empty: it stays as it starts.
            pooled: Mean of all cells as the target, in place of each cell's own.
            normalise: Layer norm without weights on each target vector.
        """

        backbone: Backbone.Config
        neck: NeckName = "last"
        weights: str = ""
        pooled: bool = False
        normalise: bool = True

    def __init__(self, config: Frozen.Config, given: Given) -> None:
        super().__init__(config, given)
        self.teacher = Encoder(config.backbone, neck=config.neck)
        if config.weights:
            self.teacher.backbone = type(config.backbone).of.from_official(config.weights, config.backbone)
        self.requires_grad_(False)
        self.width = self.teacher.channels
        self.is_dense = not config.pooled  # type: ignore[misc]

    def train(self, mode: bool = True) -> Frozen:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, scene: Scene, view: int, rows: Int64[Tensor, " b"], decoder: Decoder) -> Truth:
        with torch.no_grad():
            tokens = self.teacher.whole(scene.views[view].images).tokens[rows]
            values = tokens.mean(1) if self.config.pooled else tokens
            return Truth(_normalised(values) if self.config.normalise else values)


def slow_copy(module: nn.Module) -> nn.Module:
    """A copy that gets no gradient and drops no path."""
    copied = copy.deepcopy(module).requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, DropPath):
            part.probability = 0.0
    return copied


@torch.no_grad()
def follow(copied: nn.Module, followed: nn.Module, decay: float) -> None:
    """copy = decay * copy + (1 - decay) * followed, parameter by parameter; buffers are the copy's own."""
    own: list[Tensor] = list(copied.parameters())
    others = [p.detach() for p in followed.parameters()]
    if own:
        torch._foreach_lerp_(own, others, 1 - decay)


def _normalised(values: Shaped[Tensor, "*lead d"]) -> Shaped[Tensor, "*lead d"]:
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return F.layer_norm(wide, wide.shape[-1:], eps=1e-6)
