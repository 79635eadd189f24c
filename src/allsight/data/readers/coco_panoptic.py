"""Pictures cut whole into things and stuff, in COCO's json and png: the format `coco_panoptic:PATH`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Int32

from allsight.data.decode import MAX_PIXELS, decode_picture
from allsight.data.listings import SampleClasses
from allsight.data.readers import coco_json
from allsight.data.readers.found import Found
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import notes
from allsight.data.readers.tree import Tree, check_text, name_inside
from allsight.types import DataError, Panoptic, Sample

_SEGMENTS = {"image_id": "id", "file_name": "text", "segments_info": "list"}


class CocoPanoptic:
    """Reads `annotations/panoptic_SPLIT.json`, the pngs it names, and the pictures in `images/SPLIT`.

    The pngs lie in `annotations/panoptic_SPLIT` or `panoptic_SPLIT` (or with 2017 behind the split); a
    pixel's segment is R + 256 G + 65536 B, 0 is nobody's. Samples are called `SPLIT/FILE_NAME` and have the
    target `panoptic`. Category ids become labels 0 to n - 1 in their order.

    Args:
        path: The data set's folder, or an archive of it.
        split: Which split.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split, or a damaged json (see `coco`). On reading: a file is missing or unreadable;
            the png has another size than the picture, a segment that the json has not, or lacks one it has.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"coco_panoptic:{path.name}"
        self.split = split
        self._max_pixels = max_pixels
        layout = coco_json.find_layout(path, split, "panoptic")
        where = layout.where
        tree = coco_json.read_json(
            layout.tree,
            layout.json,
            {"images": coco_json.IMAGES, "annotations": _SEGMENTS, "categories": coco_json.CATEGORIES},
        )
        categories = coco_json.Categories(tree["categories"], where)
        self.classes = categories.names
        self.is_thing = tuple(bool(entry.get("isthing", 1)) for entry in categories.entries)
        """Whether each class can be counted."""
        self._pngs = _pngs(layout, path)
        self._pictures = coco_json.ListedPictures(tree["images"], layout, split, max_pixels)
        coco_json.refuse_twice((a["image_id"] for a in tree["annotations"]), "annotation of image", where)
        of_row = {
            self._pictures.row_of[a["image_id"]]: a
            for a in tree["annotations"]
            if a["image_id"] in self._pictures.row_of
        }
        has_some = np.isin(np.arange(len(self._pictures)), list(of_row))
        pictures, left_out = self._pictures.chosen(leave_out, has_some)
        self._pictures.keep(pictures)
        self.sizes_hw_px = self._pictures.sizes_hw
        """Height and width of each picture, as the json says."""
        entries = [of_row[row] for row in pictures.tolist()]
        self._png_names = PackedStrings(
            name_inside(check_text(entry["file_name"], where), where) for entry in entries
        )
        self._ends = np.cumsum([len(entry["segments_info"]) for entry in entries], dtype=np.int64)
        rows = [_segment(info, categories.label_of, where) for e in entries for info in e["segments_info"]]
        self._segments = np.array(rows, dtype=np.int32).reshape(-1, 3)
        self.notes = notes(
            (int((~has_some).sum()), "pictures without segments left out"),
            (len(tree["annotations"]) - len(of_row), "annotations of unknown pictures passed over"),
            (left_out, "pictures left out"),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = coco_json.splits_of(tree, "panoptic")
        return Found(f"COCO panoptic json for {', '.join(splits)}", tuple(splits)) if splits else None

    def sample_classes(self) -> SampleClasses:
        """The classes of each sample's segments."""
        return SampleClasses(self._segments[:, 1].astype(np.int64), np.concatenate([[0], self._ends]))

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        id = self._pictures.id(index)
        image = self._pictures.read(index)
        ids = self._segment_ids(index, id)
        if ids.shape != image.hw_px:
            raise DataError(
                f"{id}: {self._png_names[index]} is {ids.shape[1]} x {ids.shape[0]}, the picture "
                f"{image.hw_px[1]} x {image.hw_px[0]}; expected the same size",
                id,
            )
        first = int(self._ends[index - 1]) if index else 0
        segments = self._segments[first : int(self._ends[index])]
        return Sample(id, {"image": image}, {"panoptic": self._panoptic(ids, segments, id)})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return self._pictures.original(index)

    def _segment_ids(self, index: int, id: str) -> Int32[np.ndarray, "h w"]:
        name = self._png_names[index]
        try:
            data = self._pngs.read(name)
        except OSError as error:
            raise DataError(
                f"{id}: its segments {self._pngs.where(name)} cannot be read: {error.strerror or error}", id
            ) from error
        red, green, blue = decode_picture(data, id, max_pixels=self._max_pixels).pixels.numpy().astype("i4")
        return red + 256 * green + 65536 * blue

    def _panoptic(
        self, ids: Int32[np.ndarray, "h w"], segments: Int32[np.ndarray, "n 3"], id: str
    ) -> Panoptic:
        drawn, place = np.unique(ids, return_inverse=True)
        unknown = np.setdiff1d(drawn[drawn > 0], segments[:, 0])
        missing = np.setdiff1d(segments[:, 0], drawn)
        if len(unknown) or len(missing) or len(np.unique(segments[:, 0])) < len(segments):
            raise DataError(
                f"{id}: the png has {len(unknown)} segments that the json has not, and lacks {len(missing)} "
                f"of its {len(segments)}; expected the same ids, each once",
                id,
            )
        number_of = {segment: number for number, segment in enumerate(segments[:, 0].tolist())}
        numbers = np.array([number_of.get(value, Panoptic.ignore) for value in drawn.tolist()], np.int32)
        labels = segments[:, 1].astype(np.int64)
        return Panoptic(
            torch.from_numpy(numbers[place].reshape(ids.shape)),
            torch.from_numpy(labels),
            torch.from_numpy(np.array(self.is_thing, dtype=bool)[labels]),
            torch.from_numpy(segments[:, 2] != 0),
        )


def _segment(info: object, label_of: dict[int, int], where: str) -> tuple[int, int, int]:
    """Id, label and whether it is a crowd."""
    if not isinstance(info, dict) or not all(type(info.get(key)) is int for key in ("id", "category_id")):
        raise DataError(f"{where}: a segment is {info!r}; expected an object with 'id' and 'category_id'")
    if info["category_id"] not in label_of or not 0 < info["id"] < 2**24:
        raise DataError(
            f"{where}: segment {info['id']} has category {info['category_id']}; expected one of "
            "'categories', and an id from 1 to 16777215"
        )
    return info["id"], label_of[info["category_id"]], int(bool(info.get("iscrowd")))


def _pngs(layout: coco_json.Layout, path: Path) -> Tree:
    stem = PurePosixPath(layout.json).stem
    for folder in (f"annotations/{stem}", stem):
        if (tree := layout.tree.below(folder)) is not None:
            return tree
    raise DataError(
        f"{layout.where} is there, but not the folder of its pngs; expected {path / 'annotations' / stem}"
    )
