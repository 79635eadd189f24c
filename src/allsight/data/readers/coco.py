"""Pictures with boxes and masks in COCO's json: the format `coco:PATH`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from allsight.data.decode import MAX_PIXELS, decode_picture
from allsight.data.readers.coco_masks import segmentation_to_mask
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import ending_of, notes
from allsight.types import DataError, Objects, Sample

# Where data sets of this format keep a split, in order of preference: its json, and its pictures.
_LAYOUTS = (
    ("annotations/instances_{split}.json", "images/{split}"),
    ("annotations/instances_{split}.json", "{split}"),
    ("annotations/instances_{split}.json", "images"),
    ("annotations/instances_{split}2017.json", "{split}2017"),
    ("annotations/instances_{split}2017.json", "images/{split}2017"),
    ("{split}/_annotations.coco.json", "{split}"),
    ("{split}.json", "{split}"),
)


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "id": ((int,), "a whole number"),
    "size": ((int, float), "a number"),
    "text": ((str,), "a text"),
    "name": ((str, int), "a text"),
    "list": ((list,), "a list"),
}
"""What a value may be, and how that is called."""


class Coco:
    """Reads `annotations/instances_SPLIT.json` and the pictures in `images/SPLIT` (or COCO's own layouts).

    Samples are called `SPLIT/FILE_NAME` and have the target `objects`. Category ids become labels 0 to n - 1
    in their order. Boxes are clipped to the picture; those without area in it are dropped and counted in
    `notes`. Masks are given for a picture if all of its objects have one.

    Args:
        path: The data set's folder.
        split: Which split.
        masks: Whether to decode masks.
        crowd: Whether to keep regions of several things that cannot be told apart (`iscrowd`).
        only_annotated: Whether to leave out pictures without objects.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split; the json is damaged, or has no pictures, two pictures or annotations of one
            id, or annotations of an unknown category. On reading: the picture is missing, unreadable, or of
            another size than the json says; a box is NaN or infinite; a segmentation is malformed.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        masks: bool = True,
        crowd: bool = True,
        only_annotated: bool = False,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"coco:{path.name}"
        self.split = split
        self._max_pixels = max_pixels
        self._json, self._folder = _find(path, split)
        tree = _load(self._json)
        categories = sorted(tree["categories"], key=lambda category: category["id"])
        _refuse_twice((category["id"] for category in categories), "category id", self._json)
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        self.classes = tuple(str(category["name"]) for category in categories)

        images = tree["images"]
        if not images:
            raise DataError(f"{self._json}: no pictures; expected a list 'images' with entries")
        _refuse_twice((image["id"] for image in images), "image id", self._json)
        _refuse_twice((image["file_name"] for image in images), "file_name", self._json)
        row_of = {image["id"]: row for row, image in enumerate(images)}
        sizes_hw = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64)

        _refuse_twice((annotation["id"] for annotation in tree["annotations"]), "annotation id", self._json)
        annotations = [a for a in tree["annotations"] if a["image_id"] in row_of]
        orphans = len(tree["annotations"]) - len(annotations)
        unknown = next((a for a in annotations if a["category_id"] not in label_of), None)
        if unknown is not None:
            raise DataError(
                f"{self._json}: annotation {unknown['id']} has category {unknown['category_id']}, which is "
                f"none of the {len(categories)} in 'categories'"
            )
        annotations = [a for a in annotations if crowd or not a.get("iscrowd")]
        annotations.sort(key=lambda a: row_of[a["image_id"]])
        rows = np.array([row_of[a["image_id"]] for a in annotations], dtype=np.int64)
        boxes = _clipped([a["bbox"] for a in annotations], sizes_hw[rows], self._json)
        # NaN boxes stay, so that reading their picture can name them.
        keep = ~((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
        kept = np.flatnonzero(keep)
        rows = rows[kept]

        ids = [f"{split}/{image['file_name']}" for image in images]
        chosen = np.array([not id.startswith(leave_out) for id in ids], dtype=bool)
        left_out = int((~chosen).sum())
        if only_annotated:
            chosen &= np.isin(np.arange(len(ids)), rows)
        pictures = np.flatnonzero(chosen)
        if not len(pictures):
            raise DataError(
                f"{self._json}: nothing remains of {len(ids)} pictures (leave_out, only_annotated)"
            )

        self._file_names = PackedStrings(images[row]["file_name"] for row in pictures)
        self._sizes_hw = sizes_hw[pictures]
        self._first = np.searchsorted(rows, pictures)
        self._end = np.searchsorted(rows, pictures, side="right")
        self._boxes = boxes[kept]
        self._labels = np.array([label_of[annotations[k]["category_id"]] for k in kept], dtype=np.int64)
        self._is_crowd = np.array([bool(annotations[k].get("iscrowd")) for k in kept], dtype=bool)
        self.annotation_ids = np.array([annotations[k]["id"] for k in kept], dtype=np.int64)
        """Ids of the annotations, those of one picture after those of another."""
        self.image_ids = np.array([images[row]["id"] for row in pictures], dtype=np.int64)
        """COCO's image id of each sample."""
        self._segmentations = PackedStrings(_printed(annotations[k]) for k in kept) if masks else None
        self.notes = notes(
            (len(annotations) - len(kept), "boxes without area in their picture dropped"),
            (orphans, "annotations of pictures that are not in the file passed over"),
            (left_out, "pictures left out"),
        )

    def __len__(self) -> int:
        return len(self._file_names)

    def __getitem__(self, index: int) -> Sample:
        id = f"{self.split}/{self._file_names[index]}"
        image = decode_picture(self._picture(index, id), id, max_pixels=self._max_pixels)
        height, width = self._sizes_hw[index].tolist()
        if image.hw_px != (height, width):
            raise DataError(
                f"{id}: the picture is {image.hw_px[1]} x {image.hw_px[0]} (EXIF orientation applied), "
                f"{self._json.name} says {width} x {height}; its boxes would be wrong",
                id,
            )
        return Sample(id, {"image": image}, {"objects": self._objects(index, id, height, width)})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        name = self._file_names[index]
        return {ending_of(name): self._picture(index, f"{self.split}/{name}")}

    def _picture(self, index: int, id: str) -> bytes:
        path = self._folder / self._file_names[index]
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{id}: no such picture: {path} (named in {self._json.name})", id) from None
        except OSError as error:
            raise DataError(f"{id}: {path} cannot be read: {error.strerror or error}", id) from error

    def _objects(self, index: int, id: str, height: int, width: int) -> Objects:
        own = slice(int(self._first[index]), int(self._end[index]))
        boxes = self._boxes[own]
        bad = np.flatnonzero(~np.isfinite(boxes).all(1))
        if len(bad):
            number = self.annotation_ids[own][bad[0]]
            raise DataError(
                f"{id}: the box of annotation {number} is not finite: {boxes[bad[0]].tolist()}", id
            )
        return Objects(
            torch.from_numpy(boxes.copy()),
            torch.from_numpy(self._labels[own].copy()),
            self._masks(own, id, height, width),
            torch.from_numpy(self._is_crowd[own].copy()),
        )

    def _masks(self, own: slice, id: str, height: int, width: int) -> Tensor | None:
        if self._segmentations is None:
            return None
        texts = [self._segmentations.raw(place) for place in range(own.start, own.stop)]
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


def _find(path: Path, split: str) -> tuple[Path, Path]:
    tried = [
        (path / file.format(split=split), path / folder.format(split=split)) for file, folder in _LAYOUTS
    ]
    for file, folder in tried:
        if file.is_file() and folder.is_dir():
            return file, folder
    for file, folder in tried:
        if file.is_file():
            raise DataError(f"{file} is there, but not the folder of its pictures; expected {folder}")
    there = sorted(file.stem.removeprefix("instances_") for file in path.glob("annotations/instances_*.json"))
    listed = f"there are: {', '.join(there)}" if there else "there are no annotations/instances_*.json"
    raise DataError(f"{path}: no split {split!r}; {listed}; expected {tried[0][0]}")


def _load(path: Path) -> Mapping[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not COCO json ({error})") from error
    # Names and sizes are taken as some tools write them: numbers as names, sizes with a fraction of 0.
    needed: dict[str, dict[str, str]] = {
        "images": {"id": "id", "file_name": "text", "height": "size", "width": "size"},
        "annotations": {"id": "id", "image_id": "id", "category_id": "id", "bbox": "list"},
        "categories": {"id": "id", "name": "name"},
    }
    for part, keys in needed.items():
        entries = tree.get(part) if isinstance(tree, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: no list {part!r}; expected COCO json with {', '.join(needed)}")
        for entry in entries:
            if not isinstance(entry, dict):
                raise DataError(f"{path}: an entry of {part!r} is {entry!r}; expected an object")
            for key, kind in keys.items():
                if key not in entry:
                    raise DataError(f"{path}: an entry of {part!r} (id {entry.get('id')}) has no {key!r}")
                types, expected = _KINDS[kind]
                if type(entry[key]) not in types:
                    raise DataError(
                        f"{path}: an entry of {part!r} (id {entry.get('id')}) has {key!r} {entry[key]!r}; "
                        f"expected {expected}"
                    )
    return tree


def _refuse_twice(values: Iterable[Any], what: str, path: Path) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise DataError(f"{path}: {what} {twice[0]!r} occurs more than once ({len(twice)} such)")


def _clipped(bboxes: list[Any], sizes_hw: np.ndarray, path: Path) -> Float32[np.ndarray, "n 4"]:
    """[x, y, width, height] as edges inside the picture."""
    try:
        boxes = np.array(bboxes, dtype=np.float64).reshape(-1, 4)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: a 'bbox' is not four numbers x, y, width, height ({error})") from error
    boxes[:, 2:] += boxes[:, :2]
    limits = np.tile(sizes_hw[:, ::-1], 2)
    # What is not finite stays so through the clipping, and is an error when its sample is read.
    clipped = np.where(np.isfinite(boxes), np.clip(boxes, 0, limits), np.nan)
    return clipped.astype(np.float32)


def _printed(annotation: Mapping[str, Any]) -> str:
    """A segmentation as text, empty where there is none."""
    segmentation = annotation.get("segmentation")
    return json.dumps(segmentation, separators=(",", ":")) if segmentation else ""
