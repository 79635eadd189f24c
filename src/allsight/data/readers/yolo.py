"""Pictures with a text of boxes each, as YOLO's tools keep them: the format `yolo:PATH`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allsight.data.decode import MAX_PIXELS, decode_picture
from allsight.data.listings import SampleClasses
from allsight.data.readers.boxes import BoxTable
from allsight.data.readers.coco_masks import segmentation_to_mask
from allsight.data.readers.found import Found
from allsight.data.readers.pictures import (
    leave_out_of,
    link_notes,
    notes,
    original,
    pictures_of,
    read_or_refuse,
)
from allsight.data.readers.tree import Tree, all_files, open_tree
from allsight.data.readers.yolo_labels import LabelFile, parse_labels
from allsight.data.readers.yolo_yaml import read_settings, split_folders, splits_in
from allsight.types import DataError, Sample


class Yolo:
    """Reads pictures and a text of the same name for each, with a line `class x y width height` an object.

    Pictures lie in PATH/images/SPLIT and texts in PATH/labels/SPLIT, or in PATH/SPLIT/images and
    PATH/SPLIT/labels, or where `data.yaml` says (any .yaml file with `names`). x and y are the middle of the
    box; all are shares of the picture. Lines may also be polygons `class x y x y x y ...` (masks, and boxes
    around them), or, where the yaml has `kpt_shape`, boxes followed by keypoints. A picture without a text,
    or with an empty one, has no objects.

    Texts are read when the split is opened. Boxes are clipped to the picture; those without area in it are
    dropped and counted in `notes`. Samples are called `SPLIT/NAME` and have the target `objects`.

    Args:
        path: The data set's folder, or an archive of it.
        split: `train`, `val` or what the data set has.
        classes: Names of the classes in order; else `names` of the yaml, else `classes.txt`.
        masks: Whether polygons become masks, where all objects of a picture have one.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split; no class names; a yaml that is damaged or leads out of the folder. On
            reading: the picture is missing or unreadable; its text is not UTF-8, or a line is not as above.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        masks: bool = True,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"yolo:{path.name}"
        self.split = split
        self._max_pixels = max_pixels
        tree = open_tree(path)
        settings = read_settings(tree)
        pictures, labels = split_folders(tree, settings, split, path)
        self.classes = classes or settings.classes
        if not self.classes:
            raise DataError(
                f"{path}: no class names; write data.yaml with 'names', or set classes=(name, ...)"
            )
        listed = all_files(pictures)
        every = pictures_of(listed, f"{path} ({split})")
        self._files, left_out = leave_out_of(every, split, leave_out)
        texts = set(labels.names())
        self._pairs = settings.keypoint_pairs
        parsed = [
            parse_labels(labels, file, len(self.classes), settings.keypoint_shape)
            if file in texts
            else LabelFile()
            for file in map(_text_of, self._files.names)
        ]
        self._faults = {row: file.fault for row, file in enumerate(parsed) if file.fault}
        """What is wrong with a text, said when its picture is read."""
        rows = np.repeat(np.arange(len(parsed)), [len(file.labels) for file in parsed])
        self._boxes = BoxTable(
            rows,
            np.array([box for file in parsed for box in file.boxes], dtype=np.float64).reshape(-1, 4),
            np.array([label for file in parsed for label in file.labels], dtype=np.int64),
            np.ones((len(rows), 2)),
            unit=500,
        )
        self._boxes.choose(np.arange(len(parsed)))
        self._polygons = _kept([p for file in parsed for p in file.polygons], self._boxes, masks)
        keypoints = [points for file in parsed for points in file.keypoints]
        self._keypoints = np.stack(keypoints)[self._boxes.kept] if keypoints else None
        has_text = sum(_text_of(name) in texts for name in self._files.names)
        orphans = {name for name in texts if name.endswith(".txt")} - set(map(_text_of, every.names))
        self.notes = (
            *self._boxes.notes,
            *notes(
                (len(self._files.names) - has_text, "pictures without a text: taken to have no objects"),
                (len(self._faults), "pictures with a damaged text, refused when read"),
                (len(orphans), "texts without a picture passed over"),
                (left_out, "pictures left out"),
            ),
            *link_notes(listed),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = splits_in(tree, read_settings(tree))
        return Found(f"pictures and YOLO's texts for {', '.join(splits)}", tuple(splits)) if splits else None

    def sample_classes(self) -> SampleClasses:
        """The classes of each sample's objects."""
        return self._boxes.sample_classes()

    def __len__(self) -> int:
        return len(self._files.names)

    def __getitem__(self, index: int) -> Sample:
        id = f"{self.split}/{self._files.names[index]}"
        if index in self._faults:
            raise DataError(f"{id}: {self._faults[index]}", id)
        image = decode_picture(read_or_refuse(self._files, index, id), id, max_pixels=self._max_pixels)
        height, width = image.hw_px
        own = self._boxes.places(index)
        shares = self._boxes.objects(index, id, [f"object {n + 1}" for n in range(len(own))])
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        objects = type(shares)(
            shares.boxes_xyxy_px * scale,
            shares.labels,
            self._masks(own, id, height, width),
            shares.is_crowd,
            self._placed_keypoints(own, width, height),
            self._pairs,
        )
        return Sample(id, {"image": image}, {"objects": objects})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return original(self._files, index, f"{self.split}/{self._files.names[index]}")

    def _masks(self, own: range, id: str, height: int, width: int) -> Bool[Tensor, "n h w"] | None:
        polygons = [self._polygons[place] for place in own] if self._polygons else []
        if not polygons or not all(len(polygon) for polygon in polygons):
            return None
        scale = np.array([width, height])
        scaled = [(np.asarray(p).reshape(-1, 2) * scale).flatten().tolist() for p in polygons]
        return torch.from_numpy(np.stack([segmentation_to_mask([p], height, width) for p in scaled]))

    def _placed_keypoints(self, own: range, width: int, height: int) -> Float[Tensor, "n k 3"] | None:
        if self._keypoints is None:
            return None
        values = torch.from_numpy(self._keypoints[own.start : own.stop].copy())
        inside = ((values[..., :2] >= 0) & (values[..., :2] <= 1)).all(-1) & (values[..., 2] > 0)
        return (values * torch.tensor([width, height, 1.0])).where(inside[..., None], 0.0)


def _kept(polygons: list[tuple[float, ...]], boxes: BoxTable, masks: bool) -> list[np.ndarray]:
    if not masks or not any(polygons):
        return []
    return [np.array(polygons[k], dtype=np.float32) for k in boxes.kept.tolist()]


def _text_of(name: str) -> str:
    return f"{name.rpartition('.')[0]}.txt"
