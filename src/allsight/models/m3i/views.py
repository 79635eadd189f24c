"""Views of pictures, and where a cell of one view lies in another.

Letters: b rows, q cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from allsight.layers import sincos

Grid = tuple[int, int]
"""Rows and columns of cells."""

SCALE_OF_LOGARITHM = 10.0
"""By how much log-ratios of sizes are stretched, so that their sines tell them apart."""


@dataclass(frozen=True)
class View:
    """One view of each picture of a batch.

    Args:
        images: RGB; uint8 as decoded, or floating point already normalised.
        geometry: For each row the numbers of `allsight.types.Crop`.
    """

    images: Shaped[Tensor, "b 3 h w"]
    geometry: Float[Tensor, "b 6"]

    def __getitem__(self, rows: Tensor) -> View:
        return View(self.images[rows], self.geometry[rows])

    def __len__(self) -> int:
        return len(self.images)


def relative_places(
    target: Float[Tensor, "b 6"],
    input: Float[Tensor, "b 6"],
    cells: Int64[Tensor, "b q"],
    *,
    target_grid: Grid,
    input_grid: Grid,
) -> Float[Tensor, "b q 4"]:
    """Row and column of cells of the target view in the grid of the input view, and log-ratios of sizes.

    Crops are told in the frame of the picture as it was mirrored for their view, so that mirroring is undone
    where the two views differ in it.

    Args:
        target, input: Geometry of the two views.
        cells: Cells of the target, row by row of its grid.
    Returns:
        (row, column, 10 log of the ratio of heights, 10 log of that of widths); cell (0, 0) of the input is
        at row 0, column 0.
    Source: Siamese Image Modeling, arXiv:2206.01204; OpenGVLab/Siamese-Image-Modeling (positions).
    """
    top, left, height, width, picture, mirrored = input.double().unbind(1)
    other_top, other_left, other_height, other_width, _, other_mirrored = target.double().unbind(1)
    rows = (cells.div(target_grid[1], rounding_mode="floor").double() + 0.5) / target_grid[0]
    columns = ((cells % target_grid[1]).double() + 0.5) / target_grid[1]
    ratio_h, ratio_w = other_height / height, other_width / width
    row = ratio_h[:, None] * rows + ((other_top - top) / height)[:, None]
    straight = ratio_w[:, None] * columns + ((other_left - left) / width)[:, None]
    turned = -ratio_w[:, None] * columns + ((picture - left - other_left) / width)[:, None]
    column = torch.where((mirrored != other_mirrored)[:, None], turned, straight)
    sizes = SCALE_OF_LOGARITHM * torch.stack([ratio_h.log(), ratio_w.log()], 1)
    places = torch.stack([row * input_grid[0] - 0.5, column * input_grid[1] - 0.5], 2)
    return torch.cat([places, sizes[:, None].expand(-1, places.shape[1], -1)], 2).to(target.dtype)


def encode_places(places: Float[Tensor, "b q 4"], channels: int) -> Float[Tensor, "b q c"]:
    """The four numbers of `relative_places` as sines and cosines, `channels / 2` for each."""
    return torch.cat([sincos(number, channels // 2) for number in places.unbind(-1)], -1)
