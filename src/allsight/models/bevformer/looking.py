"""Where in the cameras a network looked for a box: from the box's query to cells, from cells to pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers import MSDeformAttn, SpatialCrossAttention
from allsight.models.bevformer.detection import DetectionHead
from allsight.models.bevformer.network import BEVNetwork
from allsight.types import MultiCameraBatch, State


@dataclass(frozen=True)
class Look:
    """Points in one camera.

    Args:
        camera: Its place in the rig.
        points_px: (x, y).
        weights: How much each counted; over all cameras they add up to at most 1, less where cells that no
            camera sees took part or points lie outside the picture.
    """

    camera: int
    points_px: Float[np.ndarray, "n 2"]
    weights: Float[np.ndarray, " n"]


@torch.no_grad()
def looks_for(
    network: BEVNetwork,
    head: DetectionHead,
    frame: MultiCameraBatch,
    state: State = None,
    *,
    row: int = 0,
    answer: int = 0,
) -> list[Look]:
    """Follow an answer's query through the last decoder layer to cells, and these into the cameras.

    Weights are those of attention alone, in the last layers alone: they say where was looked, not why.

    Args:
        network, head: In evaluation mode.
        frame: What is looked at.
        state: Memory before it.
        row: Of the batch.
        answer: 0 for the best box of the row, 1 for the second ...
    Returns:
        An entry for each camera that was looked into.
    """
    decoder, encoder = head.layers[-1].cross_attn, network.encoder.layers[-1].spatial
    assert isinstance(decoder, MSDeformAttn) and isinstance(encoder, SpatialCrossAttention)
    with _inputs_of(decoder) as asked, _inputs_of(encoder) as looked:
        bev, _ = network(frame, state)
        outputs = head(bev)
    scores = outputs.logits[-1, row].sigmoid()
    query = int(scores.flatten().argsort(descending=True, stable=True)[answer]) // scores.shape[1]
    content, reference, _, shapes = asked
    places, logits = decoder.looks(content, reference, shapes)
    heads = decoder.heads
    weights = (logits[row, query].flatten(1).softmax(-1) / heads).flatten()
    cells = _cell_weights(places[row, query].flatten(0, 2), weights, network.config.bev_hw)
    return _in_cameras(encoder, looked, cells, row, frame)


def _cell_weights(
    places: Float[Tensor, "n 2"], weights: Float[Tensor, " n"], hw: tuple[int, int]
) -> Float[Tensor, " q"]:
    """Each point counts for the cell it lies in; points outside count nowhere."""
    rows, columns = hw
    column, line = (places * places.new_tensor([columns, rows])).floor().long().unbind(-1)
    inside = (column >= 0) & (column < columns) & (line >= 0) & (line < rows)
    found = weights.new_zeros(rows * columns)
    return found.index_add(0, (line * columns + column)[inside], weights[inside])


def _in_cameras(
    encoder: SpatialCrossAttention,
    inputs: Sequence[Any],
    cells: Float[Tensor, " q"],
    row: int,
    frame: MultiCameraBatch,
) -> list[Look]:
    query, _, shapes, seen = inputs
    places, logits = encoder.looks(query, shapes, seen)
    cameras, size = frame.images.shape[1], frame.images.shape[:2:-1]
    looks = []
    for camera in range(cameras):
        n = row * cameras + camera
        own = seen.cells[n] - row * len(cells)
        wanted = seen.is_seen[n] & (cells[own] > 0)
        if not bool(wanted.any()):
            continue
        share = (cells / seen.cameras[row].clamp_min(1))[own[wanted]]
        points = logits[n, wanted].flatten(2).softmax(-1) / encoder.heads
        weights = (share[:, None, None] * points).flatten()
        where = places[n, wanted].flatten(0, 3)
        inside = ((where >= 0) & (where <= 1)).all(-1)
        pixels = where[inside] * where.new_tensor(size)
        looks.append(Look(camera, pixels.cpu().numpy(), weights[inside].cpu().numpy()))
    return looks


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """What a module is called with while the block runs: its last call counts."""
    found: list[Any] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found[:] = inputs

    handle = module.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()
