"""A backbone as a source of tokens, of whole, masked and mixed views.

Letters: b rows, p cells of the grid, t cells seen, n pictures, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from allsight.backbones import Backbone, ViT
from allsight.config import ConfigError
from allsight.models.m3i.mixing import mix, places_of, to_cells
from allsight.models.m3i.views import Grid
from allsight.types import FeatureSpec

NeckName = Literal["last", "shuffle"]


@dataclass(frozen=True)
class Seen:
    """What an encoder makes of one picture of each row.

    Args:
        tokens: Features of the cells that were seen.
        cells: Which those are, row by row of the grid.
        grid: All cells.
        hidden: Cells that were not seen, or that the encoder saw a mask token in place of; None: none.
        summary: The class token, where the backbone has one.
    """

    tokens: Float[Tensor, "b t c"]
    cells: Int64[Tensor, "b t"]
    grid: Grid
    hidden: Int64[Tensor, "b q"] | None = None
    summary: Float[Tensor, "b c"] | None = None

    def __getitem__(self, rows: Tensor) -> Seen:
        return replace(
            self,
            tokens=self.tokens[rows],
            cells=self.cells[rows],
            hidden=None if self.hidden is None else self.hidden[rows],
            summary=None if self.summary is None else self.summary[rows],
        )

    def detach(self) -> Seen:
        summary = None if self.summary is None else self.summary.detach()
        return replace(self, tokens=self.tokens.detach(), summary=summary)


class Encoder(nn.Module):
    """A backbone, and the neck that makes one grid of its maps.

    Transformers drop what is hidden and keep mixed pictures apart. Other backbones see hidden pixels
    replaced by a learnt colour, and mixed pictures as one.

    Args:
        backbone: Settings of the backbone.
        neck: Its last map ("last"), or the last two at the stride of the finer ("shuffle").
        hides: Whether masked views will be asked for that show a mask token.
    Raises:
        ConfigError: The neck needs two maps, one of half the size of the other.
    """

    def __init__(self, backbone: Backbone.Config, *, neck: NeckName = "last", hides: bool = False) -> None:
        super().__init__()
        self.backbone: Backbone = backbone.build()
        specs = self.backbone.feature_specs
        self.neck = ShuffleNeck(specs) if neck == "shuffle" else None
        self.stride = specs[-2].stride if self.neck else specs[-1].stride
        self.channels = specs[-1].channels if self.neck is None else self.neck.channels
        self.is_transformer = isinstance(self.backbone, ViT)
        self.mask_token: nn.Parameter | None = None
        if hides:
            start = torch.empty(self.channels if self.is_transformer else 3)
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(start, std=0.02))

    def grid_of(self, images: Shaped[Tensor, "b 3 h w"]) -> Grid:
        """The cells of pictures of this size.

        Raises:
            ValueError: Sides are no multiples of a cell's.
        """
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"views: expected sides divisible by the encoder's stride of {self.stride} px, got "
                f"{height} x {width}"
            )
        return height // self.stride, width // self.stride

    def whole(self, images: Shaped[Tensor, "b 3 h w"]) -> Seen:
        """All cells of a view."""
        grid = self.grid_of(images)
        if isinstance(self.backbone, ViT):
            found = self.backbone.encode(images)
            return Seen(found.cells, _all_cells(found.cells, grid), grid, None, found.summary[:, 0])
        tokens = self._tokens(self.backbone.normalise(images))
        return Seen(tokens, _all_cells(tokens, grid), grid)

    def masked(
        self, images: Shaped[Tensor, "b 3 h w"], hidden: Bool[Tensor, "b p"], count: int, *, drop: bool
    ) -> Seen:
        """A view of which cells are hidden.

        Args:
            hidden: Which ones.
            count: How many of each row: known from the settings, so that nobody has to look.
            drop: Leave hidden cells out (transformers), else show the mask token in their place.
        """
        grid = self.grid_of(images)
        away = places_of(hidden, count)
        if isinstance(self.backbone, ViT):
            if drop:
                visible = places_of(~hidden, hidden.shape[1] - count)
                found = self.backbone.encode(images, visible=visible)
                return Seen(found.cells, visible, grid, away, found.summary[:, 0])
            found = self.backbone.encode(images, hidden=hidden, token=self.mask_token)
            return Seen(found.cells, _all_cells(found.cells, grid), grid, away, found.summary[:, 0])
        assert self.mask_token is not None
        pixels = to_cells(hidden, grid, self.stride).unflatten(1, images.shape[2:])[:, None]
        shown = torch.where(pixels, self.mask_token.view(3, 1, 1), self.backbone.normalise(images))
        tokens = self._tokens(shown)
        return Seen(tokens, _all_cells(tokens, grid), grid, away)

    def mixed(
        self,
        pictures: list[Shaped[Tensor, "b 3 h w"]],
        owners: Int64[Tensor, "b p"],
        blocks: Grid,
        counts: Sequence[int],
        *,
        separate: bool,
    ) -> list[Seen]:
        """Each picture's own cells of one input that they are mixed into.

        Args:
            pictures: The pictures in their roles.
            owners: Role that each block comes from.
            blocks: Grid of the blocks; a block holds whole cells.
            counts: Blocks of each role, the same in every row.
            separate: Whether a transformer keeps the pictures apart.
        """
        grid = self.grid_of(pictures[0])
        factor = grid[0] // blocks[0]
        cells = to_cells(owners, blocks, factor)
        mixed = mix([self.backbone.normalise(picture) for picture in pictures], owners, blocks)
        summaries: list[Tensor | None] = [None] * len(pictures)
        if isinstance(self.backbone, ViT):
            found = self.backbone.encode(mixed, owners=cells, num_pictures=len(pictures), separate=separate)
            tokens = found.cells
            summaries = [*found.summary.unbind(1)]
        else:
            tokens = self._tokens(mixed)
        seen = []
        for role, summary in enumerate(summaries):
            own, count = cells == role, counts[role] * factor**2
            places = places_of(own, count)
            away = places_of(~own, own.shape[1] - count)
            seen.append(Seen(tokens.take_along_dim(places[..., None], 1), places, grid, away, summary))
        return seen

    def _tokens(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p c"]:
        maps = self.backbone(images)
        grid = maps[-1] if self.neck is None else self.neck(maps)
        return grid.flatten(2).transpose(1, 2)


class ShuffleNeck(nn.Module):
    """The last two maps as one at the stride of the finer: 14 x 14 cells of 224 px, as a ViT/16 has.

    Source: OpenGVLab/InternImage:classification/models/intern_image.py (forward_clip_projector).
    """

    def __init__(self, specs: tuple[FeatureSpec, ...], channels: int = 1024) -> None:
        super().__init__()
        if len(specs) < 2 or specs[-1].stride != 2 * specs[-2].stride:
            strides = [spec.stride for spec in specs]
            raise ConfigError(
                f"neck: 'shuffle' needs two maps, the last of half the size, got strides {strides}"
            )
        self.channels = channels
        self.coarse = nn.Conv2d(specs[-1].channels, channels * 4, 1)
        self.fine = nn.Conv2d(specs[-2].channels, channels, 1)

    def forward(self, maps: tuple[Float[Tensor, "b _ _ _"], ...]) -> Float[Tensor, "b c h w"]:
        return F.pixel_shuffle(self.coarse(maps[-1]), 2) + self.fine(maps[-2])


def _all_cells(tokens: Float[Tensor, "b p c"], grid: Grid) -> Int64[Tensor, "b p"]:
    return torch.arange(grid[0] * grid[1], device=tokens.device).expand(len(tokens), -1)
