"""What readers of pictures with label maps share: from a pair of files to a sample."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int16

from allsight.data.decode import MAX_PIXELS, decode_label_map, decode_picture
from allsight.data.readers.files import Files
from allsight.data.readers.pictures import original, read_or_refuse
from allsight.types import DataError, LabelMap, Sample

IGNORE = 255
"""What pixels that nobody labelled hold in samples, whatever they hold in the files."""


def label_table(label_of: Mapping[int, int]) -> Int16[np.ndarray, 256]:
    """Value in the file -> label, as one look-up; -1 marks values that must not occur."""
    table = np.full(256, -1, dtype=np.int16)
    for value, label in label_of.items():
        table[value] = label
    return table


class PairedMaps:
    """Pictures and their label maps, in the same order. Samples have the target `label_map`.

    Args:
        name, split, classes, notes: See `NamedReader`.
        pictures: The pictures, named as samples are.
        maps: The label maps: 8-bit grey or palette.
        table: Of `label_table`.
        expected: What values may occur, for errors.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: tuple[str, ...],
        pictures: Files,
        maps: Files,
        table: Int16[np.ndarray, 256],
        *,
        expected: str,
        notes: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name, self.split, self.classes, self.notes = name, split, classes, notes
        self._pictures, self._maps = pictures, maps
        self._table, self._expected, self._max_pixels = table, expected, max_pixels

    def __len__(self) -> int:
        return len(self._pictures.names)

    def __getitem__(self, index: int) -> Sample:
        id = f"{self.split}/{self._pictures.names[index]}"
        image = decode_picture(read_or_refuse(self._pictures, index, id), id, max_pixels=self._max_pixels)
        values = decode_label_map(read_or_refuse(self._maps, index, id), id, max_pixels=self._max_pixels)
        if tuple(values.shape) != image.hw_px:
            raise DataError(
                f"{id}: the label map is {values.shape[1]} x {values.shape[0]}, the picture "
                f"{image.hw_px[1]} x {image.hw_px[0]} (EXIF orientation applied); expected the same size",
                id,
            )
        labels = self._table[values.numpy()]
        if labels.min() < 0:
            wrong = values.numpy()[labels < 0]
            raise DataError(
                f"{id}: the label map holds the value {wrong[0]} ({wrong.size} pixels are neither "
                f"{self._expected})",
                id,
            )
        label_map = LabelMap(torch.from_numpy(labels.astype(np.uint8)), ignore=IGNORE)
        return Sample(id, {"image": image}, {"label_map": label_map})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return original(self._pictures, index, f"{self.split}/{self._pictures.names[index]}")
