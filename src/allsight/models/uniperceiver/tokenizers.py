"""Texts, pictures and clips as tokens of one width.

Letters: b rows, t tokens, f frames, c channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

NORM_EPS = 1e-5


def sincos_grid(
    height: int, width: int, channels: int, *, scale: tuple[float, float] = (1.0, 1.0)
) -> Float[Tensor, "cells c"]:
    """Fixed positions of a grid's cells, row by row.

    Args:
        height, width: Cells.
        channels: Width of a position; a multiple of 4. The first half tells the row, the second the column.
        scale: What the numbers of rows and of columns are multiplied by: 160 / 224 lets a 14 x 14 grid lie on
            the extent of a 10 x 10 one.
    Source: fundamentalvision/Uni-Perceiver:uniperceiver/utils/transformer_util.py.
    """
    if channels % 4:
        raise ValueError(f"positions of a grid need a multiple of 4 channels, got {channels}")
    omega = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float32) / (channels // 4))
    rows = torch.arange(height, dtype=torch.float32).repeat_interleave(width) * scale[0]
    columns = torch.arange(width, dtype=torch.float32).repeat(height) * scale[1]
    angles = rows[:, None] * omega, columns[:, None] * omega
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


class TextTokenizer(nn.Module):
    """Word + learnt position + type, normalised.

    Args:
        vocab_size: Ids.
        channels: Width of the tokens.
        max_tokens: Positions there are.
        spe_id: Id of <SPE>.
        norm: Norm that is shared with pictures.
        num_types: Rows of the type embedding; the first is used.
        spe_bias: Whether <SPE> has a learnt bias beside its embedding, as in prompt tuning.
    """

    def __init__(
        self,
        vocab_size: int,
        channels: int,
        *,
        max_tokens: int,
        spe_id: int,
        norm: nn.Module,
        num_types: int,
        spe_bias: bool = False,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, channels)
        self.positions = nn.Embedding(max_tokens, channels)
        self.types = nn.Embedding(num_types, channels)
        # As published: none of the embeddings decays.
        self.no_weight_decay = {"words.weight", "positions.weight", "types.weight"}
        # In a tuple, so that a norm which is shared is not registered twice.
        self.spe_id, self.norm = spe_id, (norm,)
        self.spe_bias = nn.Parameter(torch.zeros(channels)) if spe_bias else None

    def forward(
        self,
        ids: Int64[Tensor, "b t"],
        first: int | Int64[Tensor, " b"] = 0,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Tokens of words that stand at positions `first`, `first` + 1 ..., of all rows or row by row.

        Args:
            ids: Words.
            first: Position of the first.
            mask: True where words are real, and no padding behind them; None: all are.
        Raises:
            ValueError: There are more words than positions.
        """
        most, count = self.positions.num_embeddings, ids.shape[1]
        if isinstance(first, int):
            end = first + count
            self._check_end(end)
            places = self.positions.weight[first:end]
        else:
            if len(ids):
                self._check_end(int((first + (count if mask is None else mask.sum(1))).max()))
            numbers = first[:, None] + torch.arange(count, device=ids.device)
            places = self.positions(numbers.clamp(max=most - 1))
        words = self.words(ids)
        if self.spe_bias is not None:
            words = words + (ids == self.spe_id)[..., None] * self.spe_bias
        return self.norm[0](words + places + self.types.weight[0])

    def _check_end(self, end: int) -> None:
        most = self.positions.num_embeddings
        if end > most:
            raise ValueError(f"text of {end} tokens: the model has {most} positions; encode with max_tokens")

    def prefix(self, rows: int) -> Float[Tensor, "b 1 c"]:
        """The <SPE> in front of every sequence: the word alone, without position and type."""
        word = self.words.weight[self.spe_id]
        return self.norm[0](word if self.spe_bias is None else word + self.spe_bias).expand(rows, 1, -1)


class ConvStem(nn.Module):
    """Four 3 x 3 convolutions, three with stride 2, for small pictures, beside a plain projection of patches.

    A token sees 23 px. What the convolutions say is normalised, else the positions (rms 0.7) outweigh it
    (measured 0.03). The projection keeps what they may throw away: trained to name shapes, they forget
    colours (a linear probe of their tokens told 8 colours in 26 % of pictures after 4,000 steps, and in 94 %
    where few steps went to names), and other tasks hardly bring colours back.
    """

    def __init__(self, channels: int) -> None:
        widths = (3, channels // 4, channels // 2, channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        super().__init__()
        self.convolutions = nn.Sequential(
            *layers, nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels)
        )
        self.patches = nn.Conv2d(3, channels, 8, 8)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h8 w8"]:
        """Tokens of cells of 8 x 8 pixels."""
        return self.convolutions(pixels) + self.patches(pixels)


class VisionTokenizer(nn.Module):
    """Patches of a picture or of a clip's frames + place in the grid + number of the frame, normalised.

    Args:
        channels: Width of the tokens.
        patch_px: Side of a patch.
        image_px: Side of the square the model is made for.
        position_scale: See `sincos_grid`.
        max_frames: Frame numbers there are.
        random_frames: In training, clips begin at a random frame number.
        stem: One convolution (`patch`), or `ConvStem`.
        norm: Norm that is shared with texts.
        num_types: Rows of a type embedding that published weights have and nothing uses; 0 has none.
    """

    def __init__(
        self,
        channels: int,
        *,
        patch_px: int,
        image_px: int,
        position_scale: float,
        max_frames: int,
        random_frames: bool,
        stem: Literal["patch", "conv"],
        norm: nn.Module,
        num_types: int,
    ) -> None:
        super().__init__()
        self.patch_px, self.side = patch_px, image_px // patch_px
        self.position_scale, self.random_frames = position_scale, random_frames
        self.patches = ConvStem(channels) if stem == "conv" else nn.Conv2d(3, channels, patch_px, patch_px)
        grid = sincos_grid(self.side, self.side, channels, scale=(position_scale, position_scale))
        self.grid = nn.Parameter(grid, requires_grad=False)
        self.frames = nn.Embedding(max_frames, channels)
        self.no_weight_decay = {"frames.weight"}
        self.types = (
            nn.Parameter(torch.zeros(num_types, channels), requires_grad=False) if num_types else None
        )
        self.norm = (norm,)

    def forward(self, pixels: Float[Tensor, "b *frames 3 h w"]) -> Float[Tensor, "b t c"]:
        """Tokens of a picture, or of the frames of a clip one after the other.

        Raises:
            ValueError: Sides are no multiples of a patch, or there are more frames than numbers for them.
        """
        clip = pixels[:, None] if pixels.ndim == 4 else pixels
        rows, frames, _, height, width = clip.shape
        if height % self.patch_px or width % self.patch_px:
            raise ValueError(
                f"picture of {height}x{width} px: sides must be multiples of the patch, {self.patch_px} px"
            )
        if frames > self.frames.num_embeddings:
            raise ValueError(f"clip of {frames} frames: the model numbers {self.frames.num_embeddings}")
        tokens = self.patches(clip.flatten(0, 1)).flatten(2).transpose(1, 2)
        place = self._grid(height // self.patch_px, width // self.patch_px)
        where = place + self._frames(frames)[:, None]  # [f, cells, c]
        return self.norm[0]((tokens.unflatten(0, (rows, frames)) + where.to(tokens.dtype)).flatten(1, 2))

    def _grid(self, height: int, width: int) -> Float[Tensor, "cells c"]:
        if (height, width) == (self.side, self.side):
            return self.grid
        # Any other grid lies on the extent of the own one.
        scale = (self.position_scale * self.side / height, self.position_scale * self.side / width)
        return sincos_grid(height, width, self.grid.shape[1], scale=scale).to(self.grid)

    def _frames(self, count: int) -> Float[Tensor, "f c"]:
        free = self.frames.num_embeddings - count
        if not (self.training and self.random_frames and free):
            return self.frames.weight[:count]
        # Looked up, not sliced: nobody waits for the device to tell the number.
        weight = self.frames.weight
        first = torch.randint(free + 1, (1,), device=weight.device)
        return self.frames(first + torch.arange(count, device=weight.device))


def as_pixels(content: Shaped[Tensor, "*shape"], mean: Tensor, std: Tensor) -> Float[Tensor, "*shape"]:
    """Pixels as the model takes them: uint8 ones are normalised, others are so already."""
    if content.is_floating_point():
        return content.to(mean.dtype)
    return (content.to(mean.dtype) / 255 - mean) / std
