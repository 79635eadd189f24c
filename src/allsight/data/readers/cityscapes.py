"""Cityscapes: the format `cityscapes:PATH`."""

from __future__ import annotations

from pathlib import Path

from allsight.config import ConfigError
from allsight.data.decode import MAX_PIXELS
from allsight.data.readers.found import Found, no_split
from allsight.data.readers.label_pairs import IGNORE, PairedMaps, label_table
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import leave_out_of, link_notes, notes, pictures_of
from allsight.data.readers.tree import Tree, TreeFiles, all_files, open_tree
from allsight.types import DataError

CITYSCAPES_LABELS: tuple[tuple[str, int], ...] = (
    ("unlabeled", 255),
    ("ego vehicle", 255),
    ("rectification border", 255),
    ("out of roi", 255),
    ("static", 255),
    ("dynamic", 255),
    ("ground", 255),
    ("road", 0),
    ("sidewalk", 1),
    ("parking", 255),
    ("rail track", 255),
    ("building", 2),
    ("wall", 3),
    ("fence", 4),
    ("guard rail", 255),
    ("bridge", 255),
    ("tunnel", 255),
    ("pole", 5),
    ("polegroup", 255),
    ("traffic light", 6),
    ("traffic sign", 7),
    ("vegetation", 8),
    ("terrain", 9),
    ("sky", 10),
    ("person", 11),
    ("rider", 12),
    ("car", 13),
    ("truck", 14),
    ("bus", 15),
    ("caravan", 255),
    ("trailer", 255),
    ("train", 16),
    ("motorcycle", 17),
    ("bicycle", 18),
)
"""Name and class of each value in the labelIds files, from 0 on; 255 takes no part in scoring.

Source: mcordts/cityscapesScripts:cityscapesscripts/helpers/labels.py."""

CITYSCAPES_CLASSES = tuple(name for name, label in CITYSCAPES_LABELS if label != IGNORE)

_PICTURE, _MAP = "_leftImg8bit.png", "_labelIds.png"


class Cityscapes(PairedMaps):
    """Reads leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png.

    Samples are called `SPLIT/CITY/NAME` and have the target `label_map` of the 19 classes that are scored;
    all else is 255.

    Args:
        path: The folder with leftImg8bit and gtFine.
        split: `train`, `val`, or `train_extra` with coarse labels.
        annotations: `gtFine` or `gtCoarse`.
        leave_out: Pictures whose id begins with one of these are left out (`train/aachen`).
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        ConfigError: `annotations` is something else.
        DataError: No such split; a picture without a label map. On reading: see `label_maps`.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        annotations: str = "gtFine",
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if annotations not in ("gtFine", "gtCoarse"):
            raise ConfigError(f"cityscapes: annotations is {annotations!r}; expected gtFine or gtCoarse")
        tree = open_tree(path)
        pictures, maps = tree.below(f"leftImg8bit/{split}"), tree.below(f"{annotations}/{split}")
        if pictures is None or maps is None:
            expected = f"{path / 'leftImg8bit' / split} and {path / annotations / split}"
            raise no_split(path, split, _splits(tree, annotations), expected)
        listed = all_files(pictures)
        every = pictures_of(listed, f"{path} ({split})")
        files, left_out = leave_out_of(every, split, leave_out)
        names = PackedStrings(f"{name.removesuffix(_PICTURE)}_{annotations}{_MAP}" for name in files.names)
        there = set(maps.names())
        missing = next((name for name in names if name not in there), None)
        if missing is not None:
            raise DataError(f"{path}: no label map {maps.where(missing)}")
        super().__init__(
            f"cityscapes:{path.name}",
            split,
            CITYSCAPES_CLASSES,
            files,
            TreeFiles(maps, names),
            label_table({value: label for value, (_, label) in enumerate(CITYSCAPES_LABELS)}),
            expected=f"0 to {len(CITYSCAPES_LABELS) - 1}",
            notes=(*notes((left_out, "pictures left out")), *link_notes(listed)),
            max_pixels=max_pixels,
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = _splits(tree, "gtFine") or _splits(tree, "gtCoarse")
        return (
            Found("leftImg8bit and gtFine or gtCoarse, as Cityscapes has them", tuple(splits))
            if splits
            else None
        )


def _splits(tree: Tree, annotations: str) -> list[str]:
    return sorted(set(tree.folders("leftImg8bit")) & set(tree.folders(annotations)))
