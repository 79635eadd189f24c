"""Which cells are hidden, or come from which picture: drawn from seeds, mixed, and taken apart again.

Draws are a function of the sample's seed alone, so that they do not depend on how a batch is split.

Letters: b rows, p blocks or cells of a grid, n pictures mixed into one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from allsight.models.m3i.views import Grid


def draw_owners(seeds: Int64[Tensor, " b"], grid: Grid, shares: Sequence[float]) -> Int64[Tensor, "b p"]:
    """For each block of a grid, the picture it comes from; each picture gets the same number in every row.

    Args:
        seeds: One a row.
        grid: Blocks.
        shares: Of each picture; counts are rounded at the edges between pictures, so that none is lost.
    Raises:
        ValueError: A picture would get no block.
    """
    counts = split_counts(grid[0] * grid[1], shares)
    order = _scores(seeds, grid[0] * grid[1]).argsort(dim=1, stable=True)
    each = [number for number, count in enumerate(counts) for _ in range(count)]
    numbers = torch.tensor(each, device=seeds.device)
    return torch.empty_like(order).scatter_(1, order, numbers.expand(len(seeds), -1))


def split_counts(total: int, shares: Sequence[float]) -> tuple[int, ...]:
    """How many of `total` blocks each share gets.

    Raises:
        ValueError: One gets none.
    """
    edges = [round(total * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
    counts = tuple(b - a for a, b in pairwise(edges))
    if min(counts) < 1:
        raise ValueError(
            f"mixing: {total} blocks do not give each of {len(shares)} pictures one; use smaller blocks or "
            "larger pictures"
        )
    return counts


def draw_hidden(seeds: Int64[Tensor, " b"], grid: Grid, ratio: float) -> Bool[Tensor, "b p"]:
    """Random blocks to hide, `count_random` of them in every row."""
    total = grid[0] * grid[1]
    order = _scores(seeds, total).argsort(dim=1, stable=True)
    hidden = torch.arange(total, device=seeds.device) >= total - count_random(total, ratio)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, hidden.expand(len(seeds), -1))


def draw_hidden_rectangles(
    seeds: Int64[Tensor, " b"], grid: Grid, ratio: float, *, smallest: int = 16
) -> Bool[Tensor, "b p"]:
    """Overlapping rectangles to hide, of at least `smallest` blocks while there is room; `count_rectangles`
    blocks in every row.

    Source: BEiT, arXiv:2106.08254, algorithm 1; then single blocks are added or freed up to the count, as in
    OpenGVLab/Siamese-Image-Modeling.
    """
    count = count_rectangles(grid[0] * grid[1], ratio)
    rows = [_rectangles(seed, grid, count, smallest) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(rows)).to(seeds.device)


def count_random(total: int, ratio: float) -> int:
    """Blocks that `draw_hidden` hides: all but floor(p (1 - ratio)), as MAE counts."""
    return total - int(total * (1 - ratio))


def count_rectangles(total: int, ratio: float) -> int:
    """Blocks that `draw_hidden_rectangles` hides."""
    return round(total * ratio)


def to_cells(blocks: Shaped[Tensor, "b p"], grid: Grid, factor: int) -> Shaped[Tensor, "b q"]:
    """Values of blocks for the cells in them, `factor` x `factor` each: one mask serves every stage."""
    square = blocks.unflatten(1, grid)
    return square.repeat_interleave(factor, 1).repeat_interleave(factor, 2).flatten(1)


def mix(
    pictures: Sequence[Shaped[Tensor, "b 3 h w"]], owners: Int64[Tensor, "b p"], grid: Grid
) -> Shaped[Tensor, "b 3 h w"]:
    """Take each block from its picture, bit by bit."""
    mixed, factor = pictures[0], pictures[0].shape[2] // grid[0]
    pixels = to_cells(owners, grid, factor).unflatten(1, mixed.shape[2:])[:, None]
    for number, picture in enumerate(pictures[1:], 1):
        mixed = torch.where(pixels == number, picture, mixed)
    return mixed


def places_of(mask: Bool[Tensor, "b p"], count: int) -> Int64[Tensor, "b count"]:
    """The cells that a mask picks, rising; every row has `count` of them."""
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


def _scores(seeds: Int64[Tensor, " b"], total: int) -> Int64[Tensor, "b total"]:
    """A hash of (seed, block), equal on all devices (splitmix64)."""

    def shifted(x: Tensor, bits: int) -> Tensor:
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    blocks = torch.arange(1, total + 1, device=seeds.device)
    x = seeds[:, None] * -7046029254386353131 + blocks * -7046029254386353131 * 0x2545F491
    x = (x ^ shifted(x, 30)) * -4658895280553007687
    x = (x ^ shifted(x, 27)) * -7723592293110705685
    return x ^ shifted(x, 31)


def _rectangles(seed: int, grid: Grid, count: int, smallest: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(abs(seed)))
    hidden = np.zeros(grid, dtype=bool)
    low, high = math.log(0.3), math.log(1 / 0.3)
    for _ in range(10 * count):
        missing = count - int(hidden.sum())
        if missing <= 0:
            break
        area = rng.uniform(min(smallest, missing), max(missing, smallest))
        aspect = math.exp(rng.uniform(low, high))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < grid[0] and 0 < width < grid[1]:
            top = int(rng.integers(0, grid[0] - height + 1))
            left = int(rng.integers(0, grid[1] - width + 1))
            fresh = height * width - int(hidden[top : top + height, left : left + width].sum())
            if 0 < fresh <= missing:
                hidden[top : top + height, left : left + width] = True
    flat = hidden.flatten()
    free = rng.permutation(np.flatnonzero(~flat))
    flat[free[: count - int(flat.sum())]] = True
    return flat
