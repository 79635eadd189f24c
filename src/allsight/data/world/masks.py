"""Masks as COCO stores them: polygons where they can hold the mask exactly, else run lengths.

Letters in shapes: h w the picture.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

Corner = tuple[int, int]


def to_segmentation(
    mask: Bool[np.ndarray, "h w"], box_xyxy_px: tuple[int, int, int, int] | None = None
) -> list[list[int]] | dict[str, object]:
    """Polygons along the edges of the pixels, or run lengths if the mask has holes.

    A polygon's inside, by the rule of pixel centres, is the mask exactly; coordinates count from the left
    and upper edge of the picture. Polygons cannot say that a part is missing in their middle.

    Args:
        mask: The whole picture.
        box_xyxy_px: A box around the mask, if known; nothing is searched outside it.
    """
    left, top, right, low = box_xyxy_px or (0, 0, mask.shape[1], mask.shape[0])
    polygons = outlines(mask[top:low, left:right], left, top)
    return run_lengths(mask) if polygons is None else polygons


def outlines(mask: Bool[np.ndarray, "h w"], left: int = 0, top: int = 0) -> list[list[int]] | None:
    """Outlines of the mask's parts as flat lists x, y, x, y, ..., clockwise; None if it has a hole.

    Args:
        mask: A window of the picture.
        left, top: Where in the picture the window is.
    """
    filled = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=np.int8)
    filled[1:-1, 1:-1] = mask
    # Edges run with the mask on their right-hand side. Each key (corner, heading) starts one straight edge.
    edges: dict[tuple[int, int, int], Corner] = {}
    _collect(filled[1:] - filled[:-1], edges, across=True)
    _collect((filled[:, 1:] - filled[:, :-1]).T, edges, across=False)
    polygons = []
    while edges:
        x, y, heading = start = next(iter(edges))
        polygon, twice_area = [], 0
        while True:
            polygon += [x + left, y + top]
            to_x, to_y = edges.pop((x, y, heading))
            twice_area += x * to_y - to_x * y
            x, y = to_x, to_y
            # Where two parts touch at a corner, turning right stays with the part one came from.
            to_right, to_left = (heading + 1) % 4, (heading + 3) % 4
            heading = to_right if (x, y, to_right) in edges or (x, y, to_right) == start else to_left
            if (x, y, heading) == start:
                break
        if twice_area < 0:
            return None
        polygons.append(polygon)
    return polygons


_EAST, _SOUTH, _WEST, _NORTH = range(4)


def _collect(steps: np.ndarray, edges: dict[tuple[int, int, int], Corner], *, across: bool) -> None:
    """Add the straight edges of one direction.

    Args:
        steps: +1 where the mask begins and -1 where it ends between neighbouring lines [lines, cells].
        edges: Gets (x, y, heading) -> end.
        across: Lines are rows, so edges run along x; else columns.
    """
    lines, cells = steps.shape
    # A cell of zeros before all and at the end of each line, so that every run ends in its line.
    padded = np.zeros(1 + lines * (cells + 1), dtype=np.int8)
    flat = padded[1:]
    flat.reshape(lines, cells + 1)[:, :cells] = steps
    change = (flat != padded[:-1]).nonzero()[0]
    places = change.tolist()
    for number, sign in enumerate(flat[change].tolist()):
        if sign == 0:
            continue
        line, low = divmod(places[number], cells + 1)
        high = low + places[number + 1] - places[number]
        # One less, because of the padding around the mask.
        if across:
            low, high = low - 1, high - 1
            if sign > 0:
                edges[low, line, _EAST] = (high, line)
            else:
                edges[high, line, _WEST] = (low, line)
        else:
            low, high = low - 1, high - 1
            if sign > 0:
                edges[line, high, _NORTH] = (line, low)
            else:
                edges[line, low, _SOUTH] = (line, high)


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> dict[str, object]:
    """COCO's compressed run lengths: runs down the columns, starting with zeros, as text.

    Source: cocodataset/cocoapi:common/maskApi.c, rleToString.
    """
    flat = mask.T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    if flat[0]:
        counts.insert(0, 0)
    text = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            digit = value & 31
            value >>= 5
            more = value != -1 if digit & 16 else value != 0
            text.append(chr(48 + digit + (32 if more else 0)))
    return {"size": list(mask.shape), "counts": "".join(text)}
