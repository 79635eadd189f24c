"""Polygons and lines as masks on a bird's-eye grid. A cell counts by its middle.

Letters in shapes: h w cells, n points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float64

from allsight.types import BEVGrid

Polygon = Sequence[np.ndarray]
"""Its outline [n, 2] and then its holes; the last point joins the first."""


def fill_polygons(polygons: Iterable[Polygon], grid: BEVGrid) -> Bool[np.ndarray, "h w"]:
    """Cells whose middle lies in one of the polygons and not in its holes.

    An outline that crosses itself is filled where it winds an odd number of times.
    """
    mask = np.zeros(grid.hw, dtype=bool)
    for polygon in polygons:
        _fill([_cells(ring, grid) for ring in polygon if len(ring) > 2], mask)
    return mask


def draw_lines(
    lines: Iterable[Float[np.ndarray, "_ 2"]], width_m: float, grid: BEVGrid
) -> Bool[np.ndarray, "h w"]:
    """Cells whose middle lies within half of `width_m` of a line; ends are round."""
    mask = np.zeros(grid.hw, dtype=bool)
    size = np.array(grid.cell_m)
    reach = width_m / 2 / size
    for line in lines:
        places = _cells(line, grid)
        for start, end in pairwise(places):
            _stroke(start, end, reach, size, (width_m / 2) ** 2, mask)
    return mask


def _cells(points_m: Float[np.ndarray, "n 2"], grid: BEVGrid) -> Float64[np.ndarray, "n 2"]:
    """(column, row) of points, whole numbers at the middles of cells."""
    low = np.array(grid.range_m[:2])
    return (np.asarray(points_m, dtype=np.float64) - low) / np.array(grid.cell_m) - 0.5


def _fill(rings: Sequence[Float64[np.ndarray, "n 2"]], mask: Bool[np.ndarray, "h w"]) -> None:
    """Turn on what lies inside an odd number of rings, by crossings to the left of each cell."""
    height, width = mask.shape
    starts = np.concatenate(rings) if rings else np.zeros((0, 2))
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) if rings else starts
    # An edge covers the rows whose middle is at or above its lower end and below its upper end, so that a
    # corner between two edges counts once.
    first = np.clip(np.ceil(np.minimum(starts[:, 1], ends[:, 1])), 0, height).astype(int)
    last = np.clip(np.ceil(np.maximum(starts[:, 1], ends[:, 1])), 0, height).astype(int)
    counts = last - first
    some = counts > 0
    if not some.any():
        return
    starts, ends, first, counts = starts[some], ends[some], first[some], counts[some]
    edge = np.repeat(np.arange(len(counts)), counts)
    row = np.repeat(first, counts) + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    slope = (ends[:, 0] - starts[:, 0]) / (ends[:, 1] - starts[:, 1])
    crossing = starts[edge, 0] + (row - starts[edge, 1]) * slope[edge]
    column = np.clip(np.ceil(crossing), 0, width).astype(int)
    top, bottom = int(row.min()), int(row.max()) + 1
    crossings = np.zeros((bottom - top, width + 1), dtype=np.int32)
    np.add.at(crossings, (row - top, column), 1)
    mask[top:bottom] |= (np.cumsum(crossings, axis=1)[:, :width] & 1).astype(bool)


def _stroke(
    start: Float64[np.ndarray, " 2"],
    end: Float64[np.ndarray, " 2"],
    reach: Float64[np.ndarray, " 2"],
    size_m: Float64[np.ndarray, " 2"],
    most_squared: float,
    mask: Bool[np.ndarray, "h w"],
) -> None:
    height, width = mask.shape
    low = np.ceil(np.minimum(start, end) - reach).clip(0, (width, height)).astype(int)
    high = (np.floor(np.maximum(start, end) + reach) + 1).clip(0, (width, height)).astype(int)
    if (low >= high).any():
        return
    x = (np.arange(low[0], high[0]) - start[0])[None, :] * size_m[0]
    y = (np.arange(low[1], high[1]) - start[1])[:, None] * size_m[1]
    along = (end - start) * size_m
    length = float(along @ along)
    at = np.clip((x * along[0] + y * along[1]) / length, 0, 1) if length else np.zeros_like(x + y)
    near = (x - at * along[0]) ** 2 + (y - at * along[1]) ** 2 <= most_squared
    mask[low[1] : high[1], low[0] : high[0]] |= near
