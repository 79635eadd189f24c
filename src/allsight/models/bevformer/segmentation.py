"""Map classes from a bird's-eye-view map: one query per class whose attention is its mask, or convolutions.

Letters: b rows, k map classes, c channels, m attention heads, h w cells of the map, p q cells of a finer map,
l layers that answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, Configured, Family
from allsight.layers import MLP
from allsight.types import BEVGrid, BEVSpec

_RARE = -2.0
"""First logit of every cell: most classes cover little of the ground."""

MAP_HEADS = Family(
    "map head",
    {
        "queries": "allsight.models.bevformer.segmentation:MapQueryHead",
        "conv": "allsight.models.bevformer.segmentation:MapConvHead",
    },
)


@dataclass(frozen=True)
class MapOutputs:
    """What a map head gives.

    Args:
        layers: Logits of every class in every cell after each layer that answers; the last one counts, the
            others learn.
    """

    layers: Float[Tensor, "l b k p q"]

    @property
    def map_logits(self) -> Float[Tensor, "b k p q"]:
        """The answer."""
        return self.layers[-1]


class MapHead(nn.Module, Configured):
    """Base of heads that say which classes each cell of the ground belongs to.

    Args:
        config: Its settings.
        spec: The map that is read.
        classes: How many classes.
        grid: Where answers are wanted; it may have other cells and reach elsewhere than the map.
    """

    class Config(Config):
        """Settings of all map heads.

        Attributes:
            upscale: The head works on cells so much smaller than those of the map it reads.
        """

        upscale: int = Field(default=1, ge=1)

    family: ClassVar[Family | None] = MAP_HEADS

    def __init__(self, config: MapHead.Config, spec: BEVSpec, classes: int, grid: BEVGrid) -> None:
        super().__init__()
        self.config, self.classes, self.channels = config, classes, spec.channels
        self.finer: nn.Module = nn.Identity()
        if config.upscale > 1:
            wide = spec.channels * config.upscale**2
            self.finer = nn.Sequential(
                nn.Conv2d(spec.channels, wide, 3, padding=1), nn.PixelShuffle(config.upscale), nn.ReLU()
            )
        like = torch.zeros((), dtype=torch.float64)
        places = 2 * spec.grid.to_parts(grid.centers_m(like)) - 1
        fine_hw = tuple(side * config.upscale for side in spec.grid.hw)
        is_same = grid.range_m[:2] + grid.range_m[3:5] == spec.grid.range_m[:2] + spec.grid.range_m[3:5]
        # The same cells need no look-up.
        wanted = None if is_same and fine_hw == grid.hw else places.unflatten(0, grid.hw).float()
        self.places: Tensor | None
        self.register_buffer("places", wanted, persistent=False)

    def at_cells(self, logits: Float[Tensor, "b k _ _"]) -> Float[Tensor, "b k p q"]:
        """Logits at the cells that are asked for; beyond the edge of the map, those of its edge."""
        if self.places is None:
            return logits
        where = self.places.expand(len(logits), -1, -1, -1)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.grid_sample(
            logits.to(dtype), where.to(dtype), mode="bilinear", padding_mode="border", align_corners=False
        )

    def forward(self, bev: Float[Tensor, "b c h w"]) -> MapOutputs:
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class MapQueryHead(MapHead):
    """A learned query per class; the logits of its attention to the cells are its mask.

    The published description names the idea alone: the mask decoder of Panoptic SegFormer with a query fixed
    to each class. Number of layers, loss and weights were not published and are choices here.

    Source: BEVFormer, arXiv:2203.17270, section 3.5 and appendix A.3; Panoptic SegFormer, arXiv:2109.03814,
    section 3.4.
    """

    class Config(MapHead.Config):
        """Settings of the head.

        Attributes:
            layers: Layers, each of which answers.
            heads: Attention heads.
            hidden: Width of the feed-forward parts.
            drop: Dropout probability.
            smooth: Let each answer look at its neighbours with a 3x3 convolution over the heads' logits.
        """

        layers: int = Field(default=3, ge=1)
        heads: int = Field(default=8, ge=1)
        hidden: int = Field(default=512, ge=1)
        drop: float = Field(default=0.0, ge=0, lt=1)
        smooth: bool = True

    config: MapQueryHead.Config

    def __init__(self, config: MapQueryHead.Config, spec: BEVSpec, classes: int, grid: BEVGrid) -> None:
        super().__init__(config, spec, classes, grid)
        self.queries = nn.Parameter(torch.randn(classes, spec.channels))
        self.layers = nn.ModuleList(_MaskLayer(spec.channels, config, classes) for _ in range(config.layers))

    def forward(self, bev: Float[Tensor, "b c h w"]) -> MapOutputs:
        """Answer after each layer."""
        fine = self.finer(bev)
        memory = fine.flatten(2).transpose(1, 2)
        query = self.queries.to(memory.dtype).expand(len(bev), -1, -1)
        answers = []
        for layer in self.layers:
            query, mask = layer(query, memory, (int(fine.shape[2]), int(fine.shape[3])))
            answers.append(self.at_cells(mask))
        return MapOutputs(torch.stack(answers))


class _MaskLayer(nn.Module):
    """Class queries talk to each other, look at all cells, think; what they look at is the mask."""

    def __init__(self, channels: int, config: MapQueryHead.Config, classes: int) -> None:
        super().__init__()
        if channels % config.heads:
            raise ValueError(f"map head: heads: expected a divisor of {channels}, got {config.heads}")
        self.heads = config.heads
        self.self_attn = nn.MultiheadAttention(channels, config.heads, dropout=config.drop, batch_first=True)
        self.asks = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, channels)
        self.values = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        side = 3 if config.smooth else 1
        self.mask = nn.Conv2d(config.heads, 1, side, padding=side // 2, bias=False)
        self.bias = nn.Parameter(torch.full((classes,), _RARE))
        self.mlp = MLP(channels, config.hidden, act="relu", drop=config.drop)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.drop = nn.Dropout(config.drop)
        nn.init.zeros_(self.mask.weight)
        nn.init.constant_(self.mask.weight[:, :, side // 2, side // 2], 1 / math.sqrt(config.heads))

    def forward(
        self, query: Float[Tensor, "b k c"], memory: Float[Tensor, "b s c"], hw: tuple[int, int]
    ) -> tuple[Float[Tensor, "b k c"], Float[Tensor, "b k h w"]]:
        talked, _ = self.self_attn(query, query, query, need_weights=False)
        query = self.norms[0](query + self.drop(talked))
        asks, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.asks(query), self.keys(memory), self.values(memory))
        )
        seen = asks @ keys.transpose(-1, -2) / math.sqrt(asks.shape[-1])  # [b, m, k, s]
        looked = (seen.softmax(-1) @ values).transpose(1, 2).flatten(2)
        query = self.norms[1](query + self.drop(self.output(looked)))
        by_class = seen.transpose(1, 2).flatten(0, 1).unflatten(-1, hw)  # [bk, m, h, w]
        mask = self.mask(by_class)[:, 0].unflatten(0, query.shape[:2]) + self.bias[:, None, None]
        return self.norms[2](query + self.mlp(query)), mask


class MapConvHead(MapHead):
    """Two convolutions and a classifier of each cell: the plain thing to compare with."""

    class Config(MapHead.Config):
        """Settings of the head.

        Attributes:
            hidden: Channels between the convolutions.
        """

        hidden: int = Field(default=128, ge=1)

    config: MapConvHead.Config

    def __init__(self, config: MapConvHead.Config, spec: BEVSpec, classes: int, grid: BEVGrid) -> None:
        super().__init__(config, spec, classes, grid)
        last = nn.Conv2d(config.hidden, classes, 1)
        last.bias = nn.Parameter(torch.full((classes,), _RARE))
        self.body = nn.Sequential(
            nn.Conv2d(spec.channels, config.hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.hidden, config.hidden, 3, padding=1),
            nn.ReLU(),
            last,
        )

    def forward(self, bev: Float[Tensor, "b c h w"]) -> MapOutputs:
        """Answer once."""
        return MapOutputs(self.at_cells(self.body(self.finer(bev)))[None])


def joined_maps(frames: Sequence[MapOutputs]) -> MapOutputs:
    """Outputs for the same rows at several moments as those of that many more rows."""
    return MapOutputs(torch.cat([frame.layers for frame in frames], 1))


torch.export.register_dataclass(MapOutputs, serialized_type_name="allsight.MapOutputs")
