"""The label maps of Pascal VOC: the format `voc_label_maps:PATH`."""

from __future__ import annotations

from pathlib import Path

from allsight.data.decode import MAX_PIXELS
from allsight.data.readers.classes import classes_in
from allsight.data.readers.found import Found
from allsight.data.readers.label_pairs import IGNORE, PairedMaps, label_table
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import leave_out_of, notes
from allsight.data.readers.tree import Tree, TreeFiles
from allsight.data.readers.voc_sets import VOC_CLASSES, listed, names_of, open_voc, pictures_in, sets_in


class VocLabelMaps(PairedMaps):
    """Reads JPEGImages, SegmentationClass (png) and ImageSets/Segmentation of a folder VOC2012 or alike.

    Samples are called `SPLIT/NAME.jpg` and have the target `label_map`: class 0 is the background, 255 the
    rims that nobody labelled. Classes are the background and those of `classes.json` or `classes.txt`, else
    the 20 of the challenge.

    Args:
        path: The folder with JPEGImages, or one around it (`VOCdevkit`), or an archive of it.
        split: A list in ImageSets/Segmentation: `train`, `val`, `trainval`.
        classes: Names of the classes in order, the background first.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such folder or split. On reading: see `label_maps`.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        tree = open_voc(path)
        names = listed(tree, "ImageSets/Segmentation", split, path)
        files, left_out = leave_out_of(pictures_in(tree, names), split, leave_out)
        table = classes_in(tree)
        classes = classes or ("background", *(table.names if table else VOC_CLASSES))
        maps = PackedStrings(f"SegmentationClass/{name}.png" for name in names_of(files))
        super().__init__(
            f"voc_label_maps:{path.name}",
            split,
            classes,
            files,
            TreeFiles(tree, maps),
            label_table({**{value: value for value in range(len(classes))}, IGNORE: IGNORE}),
            expected=f"class 0 to {len(classes) - 1} nor {IGNORE}",
            notes=notes((left_out, "pictures left out")),
            max_pixels=max_pixels,
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = sets_in(tree, "ImageSets/Segmentation")
        if not splits:
            return None
        return Found(f"Pascal VOC's folders with lists of label maps {', '.join(splits)}", tuple(splits))
