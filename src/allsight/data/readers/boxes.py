"""The boxes of all pictures of a split in a few arrays, so that a reader is small and quick to send.

Letters in shapes: n boxes, p pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Num

from allsight.data.listings import SampleClasses
from allsight.data.readers.pictures import notes
from allsight.types import DataError, Objects

_REACH = 1.0
"""Boxes may reach so many pixels over the edge, as rounding does, before that is noted."""


class BoxTable:
    """Boxes clipped to their pictures; those without area in them are dropped and counted.

    Boxes that are not finite stay, so that reading their picture can name them.

    Args:
        rows: Number of the picture of each box, in ascending order.
        boxes_xyxy: Edges.
        labels: Class index of each.
        limits_wh: Width and height of each box's picture, in the unit of the boxes.
        is_crowd: See `Objects`.
        unit: How many pixels one unit of the boxes is, about; for the note on boxes reaching outside.
    """

    def __init__(
        self,
        rows: Int64[np.ndarray, " n"],
        boxes_xyxy: Float64[np.ndarray, "n 4"],
        labels: Int64[np.ndarray, " n"],
        limits_wh: Num[np.ndarray, "n 2"],
        *,
        is_crowd: Bool[np.ndarray, " n"] | None = None,
        unit: float = 1.0,
    ) -> None:
        limits = np.tile(limits_wh, 2)
        clipped = np.where(np.isfinite(boxes_xyxy), np.clip(boxes_xyxy, 0, limits), np.nan)
        keep = ~((clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1]))
        self.kept: Int64[np.ndarray, " k"] = np.flatnonzero(keep)
        """Which of the given boxes are here."""
        moved = np.abs(clipped - boxes_xyxy)[keep] if len(rows) else np.zeros((0, 4))
        self.notes = notes(
            (len(rows) - len(self.kept), "boxes without area in their picture dropped"),
            (int((moved * unit > _REACH).any(1).sum()), "boxes reaching outside their picture clipped"),
        )
        self.rows = rows[self.kept]
        self.boxes_xyxy: Float32[np.ndarray, "k 4"] = clipped[self.kept].astype(np.float32)
        self.labels = labels[self.kept]
        self.is_crowd = np.zeros(len(self.kept), bool) if is_crowd is None else is_crowd[self.kept]
        self._first = self._end = np.zeros(0, np.int64)

    def choose(self, pictures: Int64[np.ndarray, " p"]) -> None:
        """Say which pictures, by their numbers in ascending order, are picture 0, 1, ... from now on."""
        self._first = np.searchsorted(self.rows, pictures)
        self._end = np.searchsorted(self.rows, pictures, side="right")

    def places(self, index: int) -> range:
        """Places of a picture's boxes in the arrays."""
        return range(int(self._first[index]), int(self._end[index]))

    def sample_classes(self) -> SampleClasses:
        """The classes of each picture's boxes."""
        counts = self._end - self._first
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(offsets[-1]) + np.repeat(self._first - offsets[:-1], counts)
        return SampleClasses(self.labels[places], offsets)

    def objects(self, index: int, id: str, names: Sequence[Any], **more: Any) -> Objects:
        """A picture's boxes as a target.

        Args:
            names: What to call the boxes in errors.
            more: Further fields of `Objects`.

        Raises:
            DataError: A box is NaN or infinite.
        """
        own = self.places(index)
        boxes = self.boxes_xyxy[own.start : own.stop]
        bad = np.flatnonzero(~np.isfinite(boxes).all(1))
        if len(bad):
            raise DataError(f"{id}: the box of {names[bad[0]]} is not finite: {boxes[bad[0]].tolist()}", id)
        return Objects(
            torch.from_numpy(boxes.copy()),
            torch.from_numpy(self.labels[own.start : own.stop].copy()),
            is_crowd=torch.from_numpy(self.is_crowd[own.start : own.stop].copy()),
            **more,
        )
