"""Pictures with captions in COCO's json: the format `coco_captions:PATH`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from allsight.data.decode import MAX_PIXELS
from allsight.data.readers import coco_json
from allsight.data.readers.captions import MAX_CHARACTERS, check_length, cleaned
from allsight.data.readers.found import Found
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import notes
from allsight.data.readers.tree import Tree, check_text
from allsight.types import Modality, Sample

_CAPTIONS = {"id": "id", "image_id": "id", "caption": "text"}


class CocoCaptions:
    """Reads `annotations/captions_SPLIT.json` and the pictures in `images/SPLIT` (or COCO's own layouts).

    Samples are pictures, called `SPLIT/FILE_NAME`, with the target `captions`: all texts of the picture, in
    the order of the file. Pictures without captions are left out and counted in `notes`.

    Args:
        path: The data set's folder, or an archive of it.
        split: Which split.
        pictures: Read the pictures; false for tasks on the texts alone, which then need no pictures on disk.
        max_characters: A picture with a longer caption is refused when it is read.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split, or a damaged json (see `coco`). On reading: the picture is missing,
            unreadable, or of another size than the json says; a caption is too long.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        pictures: bool = True,
        max_characters: int = MAX_CHARACTERS,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"coco_captions:{path.name}"
        self.split = split
        self.classes: tuple[str, ...] = ()
        self._max_characters = max_characters
        self._reads_pictures = pictures
        layout = coco_json.find_layout(path, split, "captions")
        tree = coco_json.read_json(
            layout.tree, layout.json, {"images": coco_json.IMAGES, "annotations": _CAPTIONS}
        )
        self._pictures = coco_json.ListedPictures(tree["images"], layout, split, max_pixels)
        coco_json.refuse_twice((a["id"] for a in tree["annotations"]), "annotation id", layout.where)
        captions: dict[int, list[str]] = defaultdict(list)
        orphans = empty = 0
        for annotation in tree["annotations"]:
            row = self._pictures.row_of.get(annotation["image_id"])
            if row is None:
                orphans += 1
                continue
            texts = cleaned(
                [check_text(annotation["caption"], f"{layout.where}, annotation {annotation['id']}")]
            )
            empty += not texts
            captions[row] += texts
        has_some = np.array([bool(captions[row]) for row in range(len(self._pictures))])
        kept, left_out = self._pictures.chosen(leave_out, has_some)
        self._pictures.keep(kept)
        self.sizes_hw_px = self._pictures.sizes_hw
        """Height and width of each picture, as the json says."""
        self._captions = PackedStrings(text for row in kept.tolist() for text in captions[row])
        self._ends = np.cumsum([len(captions[row]) for row in kept.tolist()], dtype=np.int64)
        self.notes = notes(
            (int((~has_some).sum()), "pictures without captions left out"),
            (empty, "empty captions dropped"),
            (orphans, "captions of pictures that are not in the file passed over"),
            (left_out, "pictures left out"),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = coco_json.splits_of(tree, "captions")
        return Found(f"COCO json of captions for {', '.join(splits)}", tuple(splits)) if splits else None

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        id = self._pictures.id(index)
        first = int(self._ends[index - 1]) if index else 0
        captions = tuple(self._captions[place] for place in range(first, int(self._ends[index])))
        check_length(captions, id, self._max_characters)
        inputs: dict[str, Modality] = {"image": self._pictures.read(index)} if self._reads_pictures else {}
        return Sample(id, inputs, {"captions": captions})

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return self._pictures.original(index)
