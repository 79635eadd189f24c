"""Pictures with boxes as Pascal VOC keeps them: the format `voc:PATH`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from allsight.data.decode import MAX_PIXELS, decode_picture
from allsight.data.listings import SampleClasses
from allsight.data.readers.boxes import BoxTable
from allsight.data.readers.classes import classes_in
from allsight.data.readers.found import Found
from allsight.data.readers.pictures import leave_out_of, notes, original, read_or_refuse
from allsight.data.readers.tree import Tree
from allsight.data.readers.voc_sets import VOC_CLASSES, listed, names_of, open_voc, pictures_in, sets_in
from allsight.data.readers.voc_xml import VocAnnotation, VocObject, parse_annotation
from allsight.types import DataError, Sample


class Voc:
    """Reads JPEGImages, Annotations (xml) and ImageSets/Main of a folder VOC2012 or alike.

    Samples are called `SPLIT/NAME.jpg` and have the target `objects`. All xml files of the split are read
    when it is opened. Corners are pixels that belong to the box, counted from 1; boxes become edges from 0
    on, are clipped to the picture, and those without area in it are dropped and counted in `notes`. Classes
    are those of `classes.json` or `classes.txt`; else the 20 of the challenge if no other name occurs; else
    all names that occur in the split `train` (in this one, where there is no `train`), sorted.

    Args:
        path: The folder with JPEGImages, or one around it (`VOCdevkit`), or an archive of it.
        split: A list in ImageSets/Main: `train`, `val`, `trainval`, ...
        classes: Names of the classes in order.
        difficult: Whether to keep objects marked as difficult.
        first_pixel: What the files count as the first pixel; some tools write 0.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such folder or split; an empty list; a name that leads out of the folder. On reading: a
            file is missing or damaged; the xml has a document type, another size than the picture, an unknown
            class, or a box that is no finite number.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        difficult: bool = True,
        first_pixel: int = 1,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"voc:{path.name}"
        self.split = split
        self._max_pixels = max_pixels
        tree = open_voc(path)
        names = listed(tree, "ImageSets/Main", split, path)
        files, left_out = leave_out_of(pictures_in(tree, names), split, leave_out)
        self._files = files
        parsed = [_read(tree, name) for name in names_of(files)]
        self._faults = {row: fault for row, fault in enumerate(parsed) if isinstance(fault, str)}
        """What is wrong with an xml file, said when its picture is read."""
        annotations = [VocAnnotation(0, 0, ()) if isinstance(a, str) else a for a in parsed]
        table = classes_in(tree)
        self.classes = classes or (table.names if table else ()) or _found_classes(tree, split, annotations)
        self._sizes_hw = np.array([(a.height, a.width) for a in annotations], dtype=np.int64)

        label_of = {name: label for label, name in enumerate(self.classes)}
        rows, boxes, labels = [], [], []
        hard = 0
        for row, annotation in enumerate(annotations):
            for thing in annotation.objects:
                if thing.difficult and not difficult:
                    hard += 1
                elif thing.name not in label_of:
                    known = f"none of the {len(self.classes)} classes"
                    self._faults.setdefault(row, f"an object is called {thing.name[:80]!r}, which is {known}")
                else:
                    rows.append(row)
                    boxes.append(_edges(thing, first_pixel))
                    labels.append(label_of[thing.name])
        numbers = np.array(rows, dtype=np.int64)
        # Files that do not say their picture's size cannot be clipped yet; see `__getitem__`.
        limits = np.where(self._sizes_hw > 0, self._sizes_hw, 2**31)[numbers][:, ::-1]
        self._boxes = BoxTable(
            numbers, np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(labels, np.int64), limits
        )
        self._boxes.choose(np.arange(len(annotations)))
        self.notes = (
            *self._boxes.notes,
            *notes(
                (hard, "difficult objects left out"),
                (len(self._faults), "pictures with damaged annotations, refused when read"),
                (left_out, "pictures left out"),
            ),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = sets_in(tree, "ImageSets/Main")
        if not splits:
            return None
        return Found(f"Pascal VOC's folders with the lists {', '.join(splits)}", tuple(splits))

    @property
    def sizes_hw_px(self) -> Int64[np.ndarray, "n 2"]:
        """Height and width of each picture, as its xml says; 1 and 1 where the xml is damaged.

        Raises:
            DataError: An xml does not say.
        """
        unknown = np.flatnonzero((self._sizes_hw == 0).any(1)).tolist()
        silent = [row for row in unknown if row not in self._faults]
        if silent:
            raise DataError(
                f"{self.split}/{self._files.names[silent[0]]}: its xml has no size ({len(silent)} of "
                f"{len(self)} have none); write <size> into them, or do without sizes"
            )
        return np.maximum(self._sizes_hw, 1)

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
        stated = tuple(self._sizes_hw[index].tolist())
        objects = self._boxes.objects(index, id, [f"object {n + 1}" for n in self._boxes.places(index)])
        height, width = image.hw_px
        if all(stated) and stated != (height, width):
            raise DataError(
                f"{id}: the picture is {width} x {height} (EXIF orientation applied), its xml says "
                f"{stated[1]} x {stated[0]}; its boxes would be wrong",
                id,
            )
        reach = objects.boxes_xyxy_px - objects.boxes_xyxy_px.new_tensor([width, height, width, height])
        if not all(stated) and bool((reach > 0).any()):
            raise DataError(
                f"{id}: a box reaches outside the picture of {width} x {height}, and the xml has no size", id
            )
        return Sample(id, {"image": image}, {"objects": objects})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return original(self._files, index, f"{self.split}/{self._files.names[index]}")


def _read(tree: Tree, name: str) -> VocAnnotation | str:
    """A picture's annotations, or what is wrong with their file."""
    file = f"Annotations/{name}.xml"
    try:
        return parse_annotation(tree.read(file))
    except (OSError, ValueError, OverflowError) as error:
        return f"{tree.where(file)}: {getattr(error, 'strerror', None) or error}"


def _edges(thing: VocObject, first_pixel: int) -> tuple[float, float, float, float]:
    left, top, right, low = thing.corners
    return left - first_pixel, top - first_pixel, right - first_pixel + 1, low - first_pixel + 1


def _found_classes(tree: Tree, split: str, annotations: list[VocAnnotation]) -> tuple[str, ...]:
    if split != "train" and "train" in sets_in(tree, "ImageSets/Main"):
        names = listed(tree, "ImageSets/Main", "train", Path())
        return _found_classes(tree, "train", [a for n in names if not isinstance(a := _read(tree, n), str)])
    found = _names(annotations)
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _names(annotations: Iterable[VocAnnotation]) -> set[str]:
    return {thing.name for annotation in annotations for thing in annotation.objects}
