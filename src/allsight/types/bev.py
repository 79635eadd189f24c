"""The bird's-eye-view grid: where its cells are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from allsight.types.features import FeatureSpec


@dataclass(frozen=True)
class BEVGrid:
    """A grid of cells on the ground plane of the reference frame.

    Row i goes with y, column j with x: cell (i, j) has its center at x_min + (j + 0.5) * cell width and
    y_min + (i + 0.5) * cell height; its place among all cells is i * columns + j. Row 0 has the smallest y,
    so a picture of the map with "y up" shows the rows upside down. Ranges need not be square nor centered.

    Args:
        range_m: x_min, y_min, z_min, x_max, y_max, z_max in the reference frame.
        hw: Rows and columns.
    Raises:
        ValueError: An empty range or no cells.
    """

    range_m: tuple[float, float, float, float, float, float]
    hw: tuple[int, int]

    def __post_init__(self) -> None:
        if any(self.range_m[axis + 3] <= self.range_m[axis] for axis in range(3)):
            raise ValueError(f"BEV range: expected minimum < maximum on each axis, got {self.range_m}")
        if min(self.hw) < 1:
            raise ValueError(f"BEV grid: expected at least one row and column, got {self.hw}")

    @property
    def cells(self) -> int:
        return self.hw[0] * self.hw[1]

    @property
    def size_m(self) -> tuple[float, float, float]:
        """Extent along x, y, z."""
        low, high = self.range_m[:3], self.range_m[3:]
        return high[0] - low[0], high[1] - low[1], high[2] - low[2]

    @property
    def cell_m(self) -> tuple[float, float]:
        """Size of a cell along x and y."""
        return self.size_m[0] / self.hw[1], self.size_m[1] / self.hw[0]

    def centers(self, like: Tensor) -> Float[Tensor, "cells 2"]:
        """x and y of all cell centers as parts of the range, 0 to 1, in type and place of `like`."""
        rows, columns = self.hw
        y = (torch.arange(rows, dtype=like.dtype, device=like.device) + 0.5) / rows
        x = (torch.arange(columns, dtype=like.dtype, device=like.device) + 0.5) / columns
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y], dim=-1).flatten(0, 1)

    def centers_m(self, like: Tensor) -> Float[Tensor, "cells 2"]:
        """x and y of all cell centers in metres."""
        return self.to_metres(self.centers(like))

    def pillars(
        self, like: Tensor, *, points: int = 4, heights_m: tuple[float, ...] | None = None
    ) -> Float[Tensor, "cells z 3"]:
        """Points above each cell's center, in metres.

        Args:
            like: Tells type and place.
            points: How many, evenly spread from half a metre above the bottom of the range to half a metre
                below its top.
            heights_m: z of the points in place of that.

        Source: fundamentalvision/BEVFormer:projects/mmdet3d_plugin/bevformer/modules/encoder.py.
        """
        centers = self.centers_m(like)
        if heights_m is None:
            bottom, top = self.range_m[2] + 0.5, self.range_m[5] - 0.5
            z = torch.linspace(bottom, top, points, dtype=like.dtype, device=like.device)
        else:
            z = torch.tensor(heights_m, dtype=like.dtype, device=like.device)
        shape = (self.cells, z.shape[0])
        return torch.cat([centers[:, None].expand(*shape, 2), z[None, :, None].expand(*shape, 1)], dim=-1)

    def to_metres(self, parts: Float[Tensor, "*shape axes"]) -> Float[Tensor, "*shape axes"]:
        """Parts of the range, 0 to 1, of (x, y) or (x, y, z) to metres."""
        low, size = self._edges(parts)
        return parts * size + low

    def to_parts(self, metres: Float[Tensor, "*shape axes"]) -> Float[Tensor, "*shape axes"]:
        """Metres of (x, y) or (x, y, z) to parts of the range; 0 and 1 are its edges."""
        low, size = self._edges(metres)
        return (metres - low) / size

    def _edges(self, like: Tensor) -> tuple[Tensor, Tensor]:
        axes = like.shape[-1]
        # Filled on the device: a tensor made from numbers would be copied there at every call.
        low = torch.stack([like.new_full((), edge) for edge in self.range_m[:axes]])
        size = torch.stack([like.new_full((), length) for length in self.size_m[:axes]])
        return low, size


@dataclass(frozen=True)
class BEVSpec(FeatureSpec):
    """A bird's-eye-view map [b, channels, rows, columns] for heads to build on; its `stride` is a cell."""

    grid: BEVGrid
