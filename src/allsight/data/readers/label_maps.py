"""Pictures with a class for each pixel: the format `label_maps:PATH`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import torch

from allsight.data.decode import MAX_PIXELS, decode_label_map, decode_picture
from allsight.data.readers.classes import read_classes
from allsight.data.readers.files import FolderFiles, SomeFiles
from allsight.data.readers.pictures import (
    ending_of,
    is_picture,
    leave_out_of,
    notes,
    pictures_of,
    read_or_refuse,
)
from allsight.types import DataError, LabelMap, Sample

IGNORE = 255
"""What pixels that nobody labelled hold in samples, whatever they hold in the files."""

_LAYOUTS = (("{split}", "{split}_labels"), ("images/{split}", "labels/{split}"))


class LabelMaps:
    """Reads pictures in PATH/SPLIT and label maps of the same names in PATH/SPLIT_labels.

    Also PATH/images/SPLIT and PATH/labels/SPLIT. Label maps are pictures of one value a pixel (8-bit grey or
    palette). Samples are called `SPLIT/NAME` and have the target `label_map`, where unlabelled pixels are
    255.

    Args:
        path: The data set's folder.
        split: Which split.
        classes: Names of the classes in order of their values; else those of `PATH/classes.json`.
        ignore: The files' value for pixels nobody labelled; else that of `classes.json`; else 255.
        leave_out: Pictures whose id begins with one of these are left out (`train/0016E5` of CamVid).
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split; no class names, or more than 255; a picture without a label map. On reading:
            a file is missing or unreadable; picture and label map differ in size; a value is neither a class
            nor `ignore`.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        ignore: int | None = None,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"label_maps:{path.name}"
        self.split = split
        self._max_pixels = max_pixels
        pictures, labels = _find(path, split)
        table = read_classes(path / "classes.json")
        self.classes = classes or (table.names if table else ())
        if not self.classes:
            raise DataError(
                f"{path}: no class names; write {path / 'classes.json'}, or set classes=(name, ...)"
            )
        if len(self.classes) > IGNORE:
            raise DataError(
                f"{path}: {len(self.classes)} classes; label maps of 8 bits hold at most {IGNORE}"
            )
        stated = table.ignore if table else None
        self.ignore = ignore if ignore is not None else stated if stated is not None else IGNORE
        """The files' value for pixels nobody labelled."""
        # One look-up turns values into labels; -1 marks those that must not occur.
        self._label_of = np.full(256, -1, dtype=np.int16)
        self._label_of[: len(self.classes)] = np.arange(len(self.classes))
        self._label_of[self.ignore] = IGNORE

        every = pictures_of(FolderFiles(pictures), str(pictures))
        self._files, left_out = leave_out_of(every, split, leave_out)
        files = FolderFiles(labels)
        place_of = {_stem(name): place for place, name in enumerate(files.names) if is_picture(name)}
        missing = [name for name in self._files.names if _stem(name) not in place_of]
        if missing:
            raise DataError(
                f"{split}/{missing[0]}: no label map {labels / _stem(missing[0])}.png "
                f"({len(missing)} of {len(self._files.names)} pictures have none)"
            )
        self._labels = SomeFiles(files, [place_of[_stem(name)] for name in self._files.names])
        self.notes = notes(
            (left_out, "pictures left out"),
            (len(place_of) - len(every.names), "label maps without a picture passed over"),
        )

    def __len__(self) -> int:
        return len(self._files.names)

    def __getitem__(self, index: int) -> Sample:
        id = f"{self.split}/{self._files.names[index]}"
        image = decode_picture(read_or_refuse(self._files, index, id), id, max_pixels=self._max_pixels)
        values = decode_label_map(read_or_refuse(self._labels, index, id), id, max_pixels=self._max_pixels)
        if tuple(values.shape) != image.hw_px:
            raise DataError(
                f"{id}: the label map is {values.shape[1]} x {values.shape[0]}, the picture "
                f"{image.hw_px[1]} x {image.hw_px[0]} (EXIF orientation applied); expected the same size",
                id,
            )
        labels = self._label_of[values.numpy()]
        if labels.min() < 0:
            wrong = values.numpy()[labels < 0]
            raise DataError(
                f"{id}: the label map holds the value {wrong[0]} ({wrong.size} pixels are neither class 0 to "
                f"{len(self.classes) - 1} nor ignore={self.ignore})",
                id,
            )
        label_map = LabelMap(torch.from_numpy(labels.astype(np.uint8)), ignore=IGNORE)
        return Sample(id, {"image": image}, {"label_map": label_map})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        name = self._files.names[index]
        return {ending_of(name): read_or_refuse(self._files, index, f"{self.split}/{name}")}


def _find(path: Path, split: str) -> tuple[Path, Path]:
    tried = [(path / a.format(split=split), path / b.format(split=split)) for a, b in _LAYOUTS]
    for pictures, labels in tried:
        if pictures.is_dir() and labels.is_dir():
            return pictures, labels
    if tried[0][0].is_dir():
        raise DataError(
            f"{tried[0][0]} is there, but not the folder of its label maps; expected {tried[0][1]}"
        )
    there = sorted(entry.name.removesuffix("_labels") for entry in path.glob("*_labels"))
    listed = f"there are: {', '.join(there)}" if there else "there is no folder SPLIT_labels"
    raise DataError(f"{path}: no split {split!r}; {listed}; expected {tried[0][0]} and {tried[0][1]}")


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
