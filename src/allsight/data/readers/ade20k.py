"""ADE20K as the scene parsing challenge ships it: the format `ade20k:PATH`."""

from __future__ import annotations

from pathlib import Path

from allsight.data.decode import MAX_PIXELS
from allsight.data.readers.ade20k_classes import ADE20K_CLASSES
from allsight.data.readers.found import Found, no_split
from allsight.data.readers.label_pairs import IGNORE, PairedMaps, label_table
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import leave_out_of, link_notes, notes, pictures_of
from allsight.data.readers.tree import Tree, TreeFiles, all_files, open_tree
from allsight.types import DataError

_FOLDERS = {"train": "training", "val": "validation", "test": "testing"}


class Ade20k(PairedMaps):
    """Reads pictures in images/training and label maps in annotations/training (and validation).

    Samples are called `SPLIT/NAME.jpg` and have the target `label_map`. In the files 0 is unlabelled and 1 to
    150 are classes; in samples classes are 0 to 149, and 255 is unlabelled.

    Args:
        path: The folder ADEChallengeData2016, or an archive of it.
        split: `train` or `val`.
        leave_out: Pictures whose id begins with one of these are left out.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split; a picture without a label map. On reading: see `label_maps`.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        tree = open_tree(path)
        folder = _FOLDERS.get(split, split)
        pictures, maps = tree.below(f"images/{folder}"), tree.below(f"annotations/{folder}")
        if pictures is None or maps is None:
            expected = f"{path / 'images' / folder} and {path / 'annotations' / folder}"
            raise no_split(path, split, _splits(tree), expected)
        listed = all_files(pictures)
        every = pictures_of(listed, f"{path} ({split})")
        files, left_out = leave_out_of(every, split, leave_out)
        names = PackedStrings(f"{name.rpartition('.')[0]}.png" for name in files.names)
        there = set(maps.names())
        missing = next((name for name in names if name not in there), None)
        if missing is not None:
            raise DataError(f"{path}: no label map {maps.where(missing)}")
        super().__init__(
            f"ade20k:{path.name}",
            split,
            ADE20K_CLASSES,
            files,
            TreeFiles(maps, names),
            label_table({0: IGNORE, **{n + 1: n for n in range(len(ADE20K_CLASSES))}}),
            expected="0 (unlabelled) nor class 1 to 150",
            notes=(
                *notes(
                    (left_out, "pictures left out"),
                    (len(there) - len(every.names), "label maps without a picture passed over"),
                ),
                *link_notes(listed),
            ),
            max_pixels=max_pixels,
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = _splits(tree)
        if not splits:
            return None
        return Found("images/training and annotations/training, as ADE20K has them", tuple(splits))


def _splits(tree: Tree) -> list[str]:
    there = set(tree.folders("images")) & set(tree.folders("annotations"))
    return [split for split, folder in _FOLDERS.items() if folder in there]
