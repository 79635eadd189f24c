"""Pictures with boxes, masks and keypoints in COCO's json: the format `coco:PATH`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from allsight.data.decode import MAX_PIXELS
from allsight.data.listings import SampleClasses
from allsight.data.readers import coco_json
from allsight.data.readers.boxes import BoxTable
from allsight.data.readers.coco_masks import segmentation_to_mask
from allsight.data.readers.found import Found
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import notes
from allsight.data.readers.tree import Tree
from allsight.types import DataError, Sample

_ANNOTATIONS = {"id": "id", "image_id": "id", "category_id": "id", "bbox": "list"}


class Coco:
    """Reads `annotations/instances_SPLIT.json` and the pictures in `images/SPLIT` (or COCO's own layouts).

    Samples are called `SPLIT/FILE_NAME` and have the target `objects`. Category ids become labels 0 to n - 1
    in their order. Boxes are clipped to the picture; those without area in it are dropped and counted in
    `notes`. Masks are given for a picture if all of its objects have one. Keypoints are given if the
    categories name them, which must then be the same for all; objects without any have none labelled, and
    those outside the picture count as not labelled.

    Args:
        path: The data set's folder, or an archive of it.
        split: Which split.
        annotations: Which file: `annotations/NAME_SPLIT.json` (`person_keypoints` for COCO's keypoints).
        masks: Whether to decode masks.
        crowd: Whether to keep regions of several things that cannot be told apart (`iscrowd`).
        only_annotated: Whether to leave out pictures without objects.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split; the json is damaged, or has no pictures, two pictures or annotations of one
            id, annotations of an unknown category, or names of pictures that lead out of their folder. On
            reading: the picture is missing, unreadable, or of another size than the json says; a box is NaN
            or infinite; a segmentation is malformed.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        annotations: str = "instances",
        masks: bool = True,
        crowd: bool = True,
        only_annotated: bool = False,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"coco:{path.name}"
        self.split = split
        layout = coco_json.find_layout(path, split, annotations)
        where = layout.where
        tree = coco_json.read_json(
            layout.tree,
            layout.json,
            {"images": coco_json.IMAGES, "annotations": _ANNOTATIONS, "categories": coco_json.CATEGORIES},
        )
        categories = coco_json.Categories(tree["categories"], where)
        self.classes = categories.names
        self._pictures = coco_json.ListedPictures(tree["images"], layout, split, max_pixels)
        entries, orphans = self._entries(tree["annotations"], categories, crowd, where)
        rows = np.array([self._pictures.row_of[a["image_id"]] for a in entries], dtype=np.int64)
        self._boxes = BoxTable(
            rows,
            _edges([a["bbox"] for a in entries], where),
            np.array([categories.label_of[a["category_id"]] for a in entries], dtype=np.int64),
            self._pictures.sizes_hw[rows][:, ::-1],
            is_crowd=np.array([bool(a.get("iscrowd")) for a in entries], dtype=bool),
        )
        kept = [entries[k] for k in self._boxes.kept.tolist()]
        everywhere = np.arange(len(self._pictures))
        allowed = np.isin(everywhere, self._boxes.rows) if only_annotated else everywhere >= 0
        pictures, left_out = self._pictures.chosen(leave_out, allowed)
        self._boxes.choose(pictures)
        self._pictures.keep(pictures)

        self.annotation_ids = np.array([a["id"] for a in kept], dtype=np.int64)
        """Ids of the annotations, those of one picture after those of another."""
        self.image_ids = self._pictures.image_ids
        """COCO's image id of each sample."""
        self.sizes_hw_px = self._pictures.sizes_hw
        """Height and width of each picture, as the json says."""
        self._segmentations = PackedStrings(map(_printed, kept)) if masks else None
        self.keypoint_names = _keypoint_names(categories.entries, where)
        """What the keypoints are called; empty if there are none."""
        self._keypoints = _keypoints(kept, len(self.keypoint_names), where) if self.keypoint_names else None
        self._pairs = left_right_pairs(self.keypoint_names)
        self.notes = (
            *self._boxes.notes,
            *notes(
                (orphans, "annotations of pictures that are not in the file passed over"),
                (left_out, "pictures left out"),
            ),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = coco_json.splits_of(tree, "instances")
        return Found(f"COCO json of boxes for {', '.join(splits)}", tuple(splits)) if splits else None

    def sample_classes(self) -> SampleClasses:
        """The classes of each sample's objects."""
        return self._boxes.sample_classes()

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        id = self._pictures.id(index)
        image = self._pictures.read(index)
        own = self._boxes.places(index)
        names = [f"annotation {number}" for number in self.annotation_ids[own.start : own.stop]]
        objects = self._boxes.objects(
            index,
            id,
            names,
            masks=self._masks(own, id, *image.hw_px),
            keypoints=self._placed_keypoints(own, image.hw_px),
            keypoint_pairs=self._pairs,
        )
        return Sample(id, {"image": image}, {"objects": objects})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return self._pictures.original(index)

    def _entries(
        self, every: Sequence[Mapping[str, Any]], categories: coco_json.Categories, crowd: bool, where: str
    ) -> tuple[list[Mapping[str, Any]], int]:
        """The annotations of the pictures in their order, and how many belong to none."""
        coco_json.refuse_twice((a["id"] for a in every), "annotation id", where)
        row_of = self._pictures.row_of
        entries = [a for a in every if a["image_id"] in row_of]
        unknown = next((a for a in entries if a["category_id"] not in categories.label_of), None)
        if unknown is not None:
            raise DataError(
                f"{where}: annotation {unknown['id']} has category {unknown['category_id']}, which is "
                f"none of the {len(categories.names)} in 'categories'"
            )
        orphans = len(every) - len(entries)
        entries = [a for a in entries if crowd or not a.get("iscrowd")]
        return sorted(entries, key=lambda a: row_of[a["image_id"]]), orphans

    def _masks(self, own: range, id: str, height: int, width: int) -> Bool[Tensor, "n h w"] | None:
        if self._segmentations is None:
            return None
        texts = [self._segmentations.raw(place) for place in own]
        if not all(texts):
            return None
        masks = np.empty((len(texts), height, width), dtype=bool)
        for k, text in enumerate(texts):
            try:
                masks[k] = segmentation_to_mask(json.loads(text), height, width)
            except (ValueError, TypeError) as error:
                number = self.annotation_ids[own.start + k]
                raise DataError(f"{id}: the mask of annotation {number}: {error}", id) from error
        return torch.from_numpy(masks)

    def _placed_keypoints(self, own: range, hw_px: tuple[int, int]) -> Float[Tensor, "n k 3"] | None:
        if self._keypoints is None:
            return None
        values = self._keypoints[own.start : own.stop]
        xy, seen = values[..., :2], values[..., 2:]
        # Those outside the picture, or not finite, are as good as not labelled.
        inside = ((xy >= 0) & (xy <= (hw_px[1], hw_px[0]))).all(-1, keepdims=True)
        return torch.from_numpy(np.where((seen > 0) & inside, values, np.float32(0)))


def left_right_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Places of the names that differ in `left` and `right` only."""
    place = {name: n for n, name in enumerate(names)}
    mirrored = {name: name.replace("left", "right") for name in names if "left" in name}
    return tuple((place[one], place[other]) for one, other in mirrored.items() if other in place)


def _edges(bboxes: list[Any], where: str) -> Float64[np.ndarray, "n 4"]:
    """[x, y, width, height] as edges."""
    try:
        boxes = np.array(bboxes, dtype=np.float64).reshape(-1, 4)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: a 'bbox' is not four numbers x, y, width, height ({error})") from error
    with np.errstate(invalid="ignore"):
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def _printed(annotation: Mapping[str, Any]) -> str:
    """A segmentation as text, empty where there is none."""
    segmentation = annotation.get("segmentation")
    return json.dumps(segmentation, separators=(",", ":")) if segmentation else ""


def _keypoint_names(categories: Sequence[Mapping[str, Any]], where: str) -> tuple[str, ...]:
    lists = {tuple(map(str, entry["keypoints"])) for entry in categories if entry.get("keypoints")}
    if len(lists) > 1:
        raise DataError(f"{where}: categories name different keypoints; expected the same for all")
    return next(iter(lists), ())


def _keypoints(
    annotations: Sequence[Mapping[str, Any]], count: int, where: str
) -> Float32[np.ndarray, "n k 3"]:
    values = np.zeros((len(annotations), count, 3), dtype=np.float32)
    for place, annotation in enumerate(annotations):
        given = annotation.get("keypoints")
        if not given:
            continue
        try:
            values[place] = np.array(given, dtype=np.float32).reshape(count, 3)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{where}: annotation {annotation['id']}: keypoints are not {count} times x, y, visibility "
                f"({error})"
            ) from error
    return values
