"""From the representation of an input to the prediction of a target.

A decoder has two parts: `project`, which a target network of the same kind copies, and `predict`, which only
the input's side has. Each kind is one class.

Letters: b rows, t cells seen, q cells asked for, c d channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.config import Config, ConfigError, Configured, Family
from allsight.layers import AttentionBlock, AttentionPool, TokenNormName, make_token_norm, sincos_2d
from allsight.layers.norm import LAYER_NORM_EPS
from allsight.models.m3i.encoder import Seen
from allsight.models.m3i.heads import Head
from allsight.models.m3i.views import Grid, encode_places

DECODERS = Family(
    "decoder",
    {
        "dense": "allsight.models.m3i.decoders:Dense",
        "pooled": "allsight.models.m3i.decoders:Pooled",
        "tokens": "allsight.models.m3i.decoders:PerToken",
    },
)


@dataclass(frozen=True)
class Question:
    """Which cells of the target view are asked for.

    Args:
        cells: Row by row of the target's grid.
        grid: The target's.
        places: Where they lie in the input view (`relative_places`); None: nobody asked.
    """

    cells: Int64[Tensor, "b q"]
    grid: Grid
    places: Float[Tensor, "b q 4"] | None = None


NOTHING_ASKED = Question(torch.zeros(0, 0, dtype=torch.int64), (0, 0))
"""For decoders of whole pictures."""


class Decoder(nn.Module, Configured):
    """Base of all decoders; built as `Class(config, channels, out)`.

    Args:
        config: Its settings.
        channels: Width of the encoder's tokens.
        out: Width that the target asks for; None: whatever the decoder gives.
    """

    class Config(Config):
        pass

    family: ClassVar[Family | None] = DECODERS
    is_dense: ClassVar[bool] = False
    """Whether predictions are those of single cells."""
    needs_places: bool = False
    """Whether it must know where the target's cells lie in the input view."""

    out_channels: int
    """Width of predictions."""
    projected_channels: int
    """Width of what `project` gives."""
    projector: nn.Module
    """From `Seen` to what `project` gives; a momentum target has a copy of it."""

    def project(self, seen: Seen) -> Tensor:
        """The part that a target network of the same kind shares."""
        return self.projector(seen)

    def predict(self, projected: Tensor, seen: Seen, question: Question) -> Tensor:
        """The prediction, [b, d] or [b, q, d]."""
        raise NotImplementedError(f"{type(self).__name__} does not predict")


class Pooled(Decoder):
    """One vector for a picture: its cells (never another picture's) pooled, then heads."""

    class Config(Decoder.Config):
        """Settings.

        Attributes:
            pool: Mean of the cells, the class token, or attention (as the head of InternImage-H).
            pooled_channels: Width after pooling by attention.
            heads: Of pooling by attention.
            norm: Layer norm after pooling.
            projector: Head that a target network shares.
            predictor: Head behind it.
        """

        pool: Literal["mean", "summary", "attention"] = "mean"
        pooled_channels: int = Field(default=768, ge=1)
        heads: int = Field(default=16, ge=1)
        norm: bool = False
        projector: Head.Config = Head.Config()
        predictor: Head.Config = Head.Config()

    def __init__(self, config: Pooled.Config, channels: int, out: int | None = None) -> None:
        super().__init__()
        self.projector = _PoolThenHead(config, channels)
        self.projected_channels = self.projector.out_channels
        self.predictor = Head(config.predictor, self.projected_channels)
        width = self.predictor.out_channels
        self.last = nn.Identity() if out is None else nn.Linear(width, out)
        self.out_channels = width if out is None else out

    def predict(self, projected: Tensor, seen: Seen, question: Question) -> Float[Tensor, "b d"]:
        return self.last(self.predictor(projected))


class _PoolThenHead(nn.Module):
    def __init__(self, config: Any, channels: int) -> None:
        super().__init__()
        self.pool = config.pool
        self.attention: AttentionPool | None = None
        if config.pool == "attention":
            self.attention = AttentionPool(channels, config.pooled_channels, heads=config.heads)
            channels = config.pooled_channels
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS) if config.norm else nn.Identity()
        self.head = Head(config.projector, channels)
        self.out_channels = self.head.out_channels

    def forward(self, seen: Seen) -> Float[Tensor, "b d"]:
        if self.attention is not None:
            pooled = self.attention(seen.tokens)
        elif self.pool == "summary":
            if seen.summary is None:
                raise ConfigError("decoder: pool='summary' needs a backbone with a class token (vit)")
            pooled = seen.summary
        else:
            pooled = seen.tokens.mean(1)
        return self.head(self.norm(pooled))


class PerToken(Decoder):
    """Each cell predicts its own target; the encoder must have seen all cells of the same view."""

    class Config(Decoder.Config):
        """Settings: the heads of a cell; `projector` is shared with a target network."""

        projector: Head.Config = Head.Config()
        predictor: Head.Config = Head.Config()

    is_dense: ClassVar[bool] = True

    def __init__(self, config: PerToken.Config, channels: int, out: int | None = None) -> None:
        super().__init__()
        self.projector = _EachToken(config.projector, channels)
        self.projected_channels = self.projector.head.out_channels
        self.predictor = Head(config.predictor, self.projected_channels)
        width = self.predictor.out_channels
        self.last = nn.Identity() if out is None else nn.Linear(width, out)
        self.out_channels = width if out is None else out

    def predict(self, projected: Tensor, seen: Seen, question: Question) -> Float[Tensor, "b q d"]:
        if projected.shape[1] != seen.grid[0] * seen.grid[1] or question.grid != seen.grid:
            raise ConfigError(
                "decoder: 'tokens' predicts cells that the encoder saw; use 'dense' where some are left out, "
                "mixed or of another view"
            )
        asked = projected.take_along_dim(question.cells[..., None], 1)
        return self.last(self.predictor(asked))


class _EachToken(nn.Module):
    def __init__(self, config: Head.Config, channels: int) -> None:
        super().__init__()
        self.head = Head(config, channels)

    def forward(self, seen: Seen) -> Float[Tensor, "b t d"]:
        return self.head(seen.tokens)


class Dense(Decoder):
    """Mask tokens at the places of the target's cells, among the cells that were seen, in a transformer.

    Source: Siamese Image Modeling, arXiv:2206.01204 (relative places, batch norm, projector); MAE,
    arXiv:2111.06377 (absolute places, layer norm, no projector). That mask tokens enter behind the projector,
    and the norm before the last layer, are our reading.
    """

    class Config(Decoder.Config):
        """Settings.

        Attributes:
            channels: Width.
            projector_blocks: Blocks over the cells seen, which a target network shares.
            predictor_blocks: Blocks over the cells seen and the mask tokens.
            heads: Attention heads.
            mlp_ratio: Hidden width of the MLPs in units of `channels`.
            norm: Of each token ("layer"), or of each channel over all tokens ("batch").
            places: Places of mask tokens: in the input view (another view may be asked for), or in the grid.
        """

        channels: int = Field(default=768, ge=4, multiple_of=4)
        projector_blocks: int = Field(default=2, ge=0)
        predictor_blocks: int = Field(default=4, ge=1)
        heads: int = Field(default=12, ge=1)
        mlp_ratio: float = Field(default=4.0, gt=0)
        norm: TokenNormName = "batch"
        places: Literal["relative", "absolute"] = "relative"

        @model_validator(mode="after")
        def _fits_together(self) -> Dense.Config:
            if self.channels % self.heads:
                raise ValueError(f"heads: expected a divisor of channels={self.channels}, got {self.heads}")
            return self

    is_dense: ClassVar[bool] = True

    def __init__(self, config: Dense.Config, channels: int, out: int | None = None) -> None:
        super().__init__()
        width = config.channels
        self.width = self.projected_channels = width
        self.needs_places = config.places == "relative"
        self.projector = DenseProjector(config, channels)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))
        self.place = nn.Linear(2 * width, width) if self.needs_places else None
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.predictor_blocks))
        self.norm = make_token_norm(config.norm, width)
        self.out_channels = out or width
        self.last = nn.Linear(width, self.out_channels)

    def project(self, seen: Seen) -> Float[Tensor, "b s d"]:
        """Cells seen, behind the class token where there is one."""
        return self.projector.sequence(seen)  # type: ignore[operator]

    def predict(self, projected: Tensor, seen: Seen, question: Question) -> Float[Tensor, "b q d"]:
        summary, cells = projected.split([projected.shape[1] - seen.cells.shape[1], seen.cells.shape[1]], 1)
        shown = [summary, cells + self._absolute(seen.cells, seen.grid, cells)]
        if self.place is None:
            places = self._absolute(question.cells, question.grid, cells)
        else:
            assert question.places is not None
            # Encoded in float32 at least: in 16 bits the sines of places some cells away are off by a tenth.
            wide = torch.promote_types(cells.dtype, torch.float32)
            places = self.place(encode_places(question.places.to(wide), self.width).to(cells.dtype))
        x = torch.cat([*shown, self.mask_token + places], 1)
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x)[:, -question.cells.shape[1] :])

    def _absolute(self, cells: Int64[Tensor, "b q"], grid: Grid, like: Tensor) -> Float[Tensor, "b q d"]:
        rows, columns = cells.div(grid[1], rounding_mode="floor"), cells % grid[1]
        wide = torch.promote_types(like.dtype, torch.float32)
        return sincos_2d(rows.to(wide), columns.to(wide), self.width).to(like.dtype)


class DenseProjector(nn.Module):
    """Linear layer and blocks over the cells seen."""

    def __init__(self, config: Dense.Config, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, config.channels)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.projector_blocks))

    def forward(self, seen: Seen) -> Float[Tensor, "b t d"]:
        """Of the cells alone."""
        return self.sequence(seen)[:, -seen.cells.shape[1] :]

    def sequence(self, seen: Seen) -> Float[Tensor, "b s d"]:
        """The class token too, in front."""
        first = [] if seen.summary is None else [seen.summary[:, None]]
        x = self.embed(torch.cat([*first, seen.tokens], 1))
        for block in self.blocks:
            x = block(x)
        return x


def _block(config: Any) -> AttentionBlock:
    return AttentionBlock(config.channels, heads=config.heads, mlp_ratio=config.mlp_ratio, norm=config.norm)
