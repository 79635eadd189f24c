import json
import os
from pathlib import Path

import numpy as np
import pytest

from allsight.data.world.masks import outlines, run_lengths, to_segmentation


def filled(polygons: list[list[int]], height: int, width: int) -> np.ndarray:
    """Even-odd rule at the centres of pixels, written as plainly as can be."""
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        corners = np.array(polygon).reshape(-1, 2)
        inside = np.zeros((height, width), dtype=bool)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            assert x0 == x1 or y0 == y1, "outlines follow the edges of pixels"
            if x0 == x1:
                rows = slice(min(y0, y1), max(y0, y1))
                inside[rows, x0:] ^= True
        mask |= inside
    return mask


def decode(rle: dict) -> np.ndarray:
    """COCO's compressed run lengths, after maskApi.c rleFrString."""
    counts: list[int] = []
    text, place = rle["counts"], 0
    while place < len(text):
        value = shift = 0
        while True:
            digit = ord(text[place]) - 48
            value |= (digit & 31) << shift
            place, shift = place + 1, shift + 5
            if not digit & 32:
                break
        if digit & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    height, width = rle["size"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    assert flat.size == height * width
    return flat.reshape(width, height).T


def blobs(seed: int, holes: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 31), dtype=bool)
    for _ in range(rng.integers(1, 6)):
        top, left = rng.integers(0, 20), rng.integers(0, 27)
        mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] ^= True
    return mask if holes else mask | (np.cumsum(mask, axis=0) > 0)


@pytest.mark.parametrize("seed", range(40))
def test_outlines_hold_masks_without_holes_exactly(seed: int):
    mask = blobs(seed, holes=False)
    polygons = outlines(mask)
    assert polygons is not None
    assert (filled(polygons, *mask.shape) == mask).all()
    assert all(len(polygon) >= 8 for polygon in polygons)
    moved = [[v - (3, 5)[i % 2] for i, v in enumerate(p)] for p in outlines(mask, 3, 5) or []]
    assert moved == polygons


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_hold_every_mask_exactly(seed: int):
    mask = blobs(seed, holes=True)
    assert (decode(run_lengths(mask)) == mask).all()


def test_a_ring_becomes_run_lengths_and_touching_corners_stay_apart():
    ring = np.zeros((9, 9), dtype=bool)
    ring[2:7, 2:7] = True
    ring[4, 4] = False
    assert outlines(ring) is None
    assert isinstance(to_segmentation(ring, (2, 2, 7, 7)), dict)
    corners = np.zeros((4, 4), dtype=bool)
    corners[0:2, 0:2] = corners[2:4, 2:4] = True
    assert sorted(map(len, outlines(corners) or [])) == [8, 8]
    other = corners[:, ::-1]
    assert (filled(outlines(other) or [], 4, 4) == other).all() and len(outlines(other) or []) == 2


def test_full_and_empty_masks():
    full = np.ones((5, 7), dtype=bool)
    assert outlines(full) == [[0, 0, 7, 0, 7, 5, 0, 5]]
    assert (decode(run_lengths(full)) == full).all()
    assert outlines(~full) == []
    assert not decode(run_lengths(~full)).any()


@pytest.mark.skipif("ALLSIGHT_DATA" not in os.environ, reason="ALLSIGHT_DATA is not set")
def test_run_lengths_are_written_as_cocos_own():
    path = Path(os.environ["ALLSIGHT_DATA"]) / "coco_small" / "annotations" / "instances_extra.json"
    annotations = json.loads(path.read_text())["annotations"]
    masks = [a["segmentation"] for a in annotations if isinstance(a.get("segmentation"), dict)]
    assert len(masks) > 100
    for rle in masks[:60]:
        assert run_lengths(decode(rle)) == rle
