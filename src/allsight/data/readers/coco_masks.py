"""COCO's ways to write a mask, turned into pixels exactly as its own tools do it.

Letters in shapes: h w the picture, k corners of a polygon, r runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

# Corners are moved to a grid five times as fine before a polygon's edges are walked.
_FINE = 5


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """A mask from an annotation's `segmentation`.

    Args:
        segmentation: Polygons [[x, y, x, y, ...], ...] in pixels, whose union is meant; or run lengths
            {"size": [h, w], "counts": list or COCO's text}, down the columns, beginning with zeros.

    Raises:
        ValueError: Another structure, or run lengths of another size.
    """
    if isinstance(segmentation, list):
        mask = np.zeros((width, height), dtype=bool)
        for polygon in segmentation:
            _fill(mask, polygon)
        return mask.T
    if isinstance(segmentation, dict) and "counts" in segmentation:
        size = segmentation.get("size")
        if list(size or ()) != [height, width]:
            raise ValueError(f"run lengths are of a picture of size {size}; expected [{height}, {width}]")
        counts = segmentation["counts"]
        runs = parse_run_lengths(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, np.int64)
        if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"run lengths add up to {runs.sum()}; expected {height} x {width} pixels")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    raise ValueError("segmentation is neither polygons nor run lengths")


def parse_run_lengths(text: str | bytes) -> Int64[np.ndarray, " r"]:
    """COCO's compressed run lengths as numbers.

    Each number is written in groups of five bits, lowest first, as characters from 48 on; bit 5 says that
    more follow, bit 4 of the last group is the sign. From the fourth on they are differences to the last but
    one.

    Raises:
        ValueError: The text ends within a number, or has other characters.

    Source: cocodataset/cocoapi:common/maskApi.c, rleFrString.
    """
    letters = text.encode("ascii", "replace") if isinstance(text, str) else text
    groups = np.frombuffer(letters, dtype=np.uint8).astype(np.int64) - 48
    if groups.size == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError("compressed run lengths are damaged")
    last = np.flatnonzero(groups & 32 == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    if (last - first).max() > 11:
        raise ValueError("compressed run lengths are damaged")
    place = np.arange(groups.size) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((groups & 31) << (5 * place), first)
    negative = groups[last] & 16 != 0
    numbers -= negative.astype(np.int64) << (5 * (last - first + 1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _fill(mask: Bool[np.ndarray, "w h"], polygon: Any) -> None:
    """Add a polygon to a mask that is stored column by column.

    Its outline is walked on the fine grid. Where it steps across the middle of a column of pixels, that
    column changes between outside and inside, so the inside is the parity of the steps above.

    Source: cocodataset/cocoapi:common/maskApi.c, rleFrPoly.
    """
    corners = np.asarray(polygon, dtype=np.float64)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError("a polygon needs three corners or more, as finite numbers x, y, x, y, ...")
    width, height = mask.shape
    columns, rows = _crossings(corners.reshape(-1, 2), height, width)
    if not len(columns):
        return
    first, last = int(columns.min()), int(columns.max())
    steps = np.bincount((columns - first) * height + rows, minlength=(last - first + 1) * height + 1)
    inside: UInt8[np.ndarray, " _"] = np.bitwise_xor.accumulate((steps & 1).astype(np.uint8))
    mask[first : last + 1] |= inside[: (last - first + 1) * height].reshape(-1, height).astype(bool)


def _crossings(
    corners: Float64[np.ndarray, "k 2"], height: int, width: int
) -> tuple[Int64[np.ndarray, " s"], Int64[np.ndarray, " s"]]:
    """Columns whose middle the outline crosses, and the first row below each crossing (`height`: none)."""
    # C's conversion to int cuts towards zero, also for negative numbers.
    fine = np.trunc(_FINE * corners + 0.5).astype(np.int64)
    start, end = fine, np.roll(fine, -1, axis=0)
    span = np.abs(end - start)
    flat = span[:, 0] >= span[:, 1]
    main, other = np.where(flat, 0, 1), np.where(flat, 1, 0)
    edge = np.arange(len(fine))
    # Edges are walked in the direction of growing main coordinate, then listed in the order of the outline.
    backwards = start[edge, main] > end[edge, main]
    low = np.where(backwards[:, None], end, start)
    high = np.where(backwards[:, None], start, end)
    length = span[edge, main]
    slope = (high - low)[edge, other] / np.maximum(length, 1)

    counts = length + 1
    walk = np.repeat(edge, counts)
    step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    step = np.where(backwards[walk], length[walk] - step, step)
    along = low[edge, main][walk] + step
    across = np.trunc(low[edge, other][walk] + slope[walk] * step + 0.5).astype(np.int64)
    x = np.where(flat[walk], along, across)
    y = np.where(flat[walk], across, along)

    moved = np.flatnonzero(x[1:] != x[:-1]) + 1
    left = np.minimum(x[moved], x[moved - 1])
    top = np.minimum(y[moved], y[moved - 1])
    # The middle of pixel c is fine coordinate 5 c + 2.
    middle = _FINE // 2
    column, rest = np.divmod(left - middle, _FINE)
    hits = (rest == 0) & (column >= 0) & (column < width)
    row = -((middle - top) // _FINE)
    return column[hits], np.clip(row, 0, height)[hits]
