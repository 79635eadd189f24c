"""Pictures with a class for each pixel: the format `label_maps:PATH`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from allsight.data.decode import MAX_PIXELS
from allsight.data.readers.classes import classes_in
from allsight.data.readers.found import Found, matches, no_split
from allsight.data.readers.label_pairs import IGNORE, PairedMaps, label_table
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import is_picture, leave_out_of, link_notes, notes, pictures_of
from allsight.data.readers.tree import Tree, TreeFiles, all_files, open_tree
from allsight.types import DataError

_LAYOUTS = (("{split}", "{split}_labels"), ("images/{split}", "labels/{split}"))


class LabelMaps(PairedMaps):
    """Reads pictures in PATH/SPLIT and label maps of the same names in PATH/SPLIT_labels.

    Also PATH/images/SPLIT and PATH/labels/SPLIT. Label maps are pictures of one value a pixel (8-bit grey or
    palette). Samples are called `SPLIT/NAME` and have the target `label_map`, where unlabelled pixels are
    255.

    Args:
        path: The data set's folder, or an archive of it.
        split: Which split.
        classes: Names of the classes in order of their values; else those of `PATH/classes.json`.
        unnamed: Where nothing names the classes, call values 0 to 254 by their numbers in place of refusing.
        ignore: The files' value for pixels nobody labelled; else that of `classes.json`; else 255.
        leave_out: Pictures whose id begins with one of these are left out (`train/0016E5` of CamVid).
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split; no class names, or more than 255; a picture without a label map. On reading:
            a file is missing or unreadable; picture and label map differ in size; a value is neither a class
            nor `ignore`.
    """

    for_looking: ClassVar[Mapping[str, Any]] = {"unnamed": True}
    """Options with which people look at data that they do not know yet."""

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        unnamed: bool = False,
        ignore: int | None = None,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        root = open_tree(path)
        (pictures, pictures_at), (labels, labels_at) = _find(root, path, split)
        table = classes_in(root)
        classes = classes or (table.names if table else ())
        are_numbers = unnamed and not classes
        if are_numbers:
            classes = tuple(map(str, range(IGNORE)))
        if not classes:
            raise DataError(
                f"{path}: no class names; write {path / 'classes.json'}, or set classes=(name, ...)"
            )
        if len(classes) > IGNORE:
            raise DataError(f"{path}: {len(classes)} classes; label maps of 8 bits hold at most {IGNORE}")
        stated = table.ignore if table else None
        self.ignore = ignore if ignore is not None else stated if stated is not None else IGNORE
        """The files' value for pixels nobody labelled."""

        listed = all_files(pictures)
        every = pictures_of(listed, str(path / pictures_at))
        files, left_out = leave_out_of(every, split, leave_out)
        label_of = {_stem(name): name for name in labels.names() if is_picture(name)}
        missing = [name for name in files.names if _stem(name) not in label_of]
        if missing:
            raise DataError(
                f"{split}/{missing[0]}: no label map {path / labels_at / _stem(missing[0])}.png "
                f"({len(missing)} of {len(files.names)} pictures have none)"
            )
        maps = TreeFiles(labels, PackedStrings(label_of[_stem(name)] for name in files.names))
        super().__init__(
            f"label_maps:{path.name}",
            split,
            classes,
            files,
            maps,
            label_table({**{value: value for value in range(len(classes))}, self.ignore: IGNORE}),
            expected=f"class 0 to {len(classes) - 1} nor ignore={self.ignore}",
            notes=(
                *notes(
                    (len(classes) * are_numbers, "values that nothing names, called by their numbers"),
                    (left_out, "pictures left out"),
                    (len(label_of) - len(every.names), "label maps without a picture passed over"),
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
        return Found(f"pictures and label maps of the same names for {', '.join(splits)}", tuple(splits))


def _find(tree: Tree, path: Path, split: str) -> tuple[tuple[Tree, str], tuple[Tree, str]]:
    """The folders of pictures and of label maps, each with its name."""
    tried = [(a.format(split=split), b.format(split=split)) for a, b in _LAYOUTS]
    for pictures_at, labels_at in tried:
        found, maps = tree.below(pictures_at), tree.below(labels_at)
        if found is not None and maps is not None:
            return (found, pictures_at), (maps, labels_at)
    pictures, labels = (path / name for name in tried[0])
    if tree.below(tried[0][0]) is not None:
        raise DataError(f"{pictures} is there, but not the folder of its label maps; expected {labels}")
    raise no_split(path, split, _splits(tree), f"{pictures} and {labels}")


def _splits(tree: Tree) -> list[str]:
    """Splits that have both folders, and label maps in theirs."""
    there = set(tree.folders())
    found = {name for name in matches(there, r"(.+)_labels") if name in there}
    inside = set(tree.folders("images")) & set(tree.folders("labels"))
    # YOLO has the same folders, with texts in place of label maps.
    found |= {name for name in inside if any(is_picture(n) for n in _names(tree, f"labels/{name}"))}
    return sorted(found)


def _names(tree: Tree, folder: str) -> PackedStrings:
    below = tree.below(folder)
    return PackedStrings(()) if below is None else below.names()


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
