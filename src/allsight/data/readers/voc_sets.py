"""Pascal VOC's folders and lists, which its boxes and its label maps share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from allsight.data.decode import PICTURE_SUFFIXES
from allsight.data.readers.files import Files
from allsight.data.readers.found import matches, no_split
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.tree import Tree, TreeFiles, name_inside, open_tree
from allsight.types import DataError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 20 classes of the challenge in their order. Source: Everingham et al., IJCV 88 (2010), table 1."""


def open_voc(path: Path) -> Tree:
    """The folder that holds JPEGImages: PATH, or the only such folder one or two levels below it.

    Raises:
        DataError: There is none, or more than one.
    """
    tree = open_tree(path)
    found = _homes(tree)
    if found == [""]:
        return tree
    home = tree.below(found[0]) if len(found) == 1 else None
    if home is not None:
        return home
    raise DataError(
        f"{path}: "
        + (
            f"several folders of Pascal VOC: {', '.join(found)}; name one"
            if found
            else "no folder JPEGImages"
        )
    )


def sets_in(tree: Tree, folder: str) -> list[str]:
    """Names of the lists in a folder such as ImageSets/Main; not those of one class (`cat_train`)."""
    homes = _homes(tree)
    if len(homes) != 1:
        return []
    inside = f"{homes[0]}/{folder}" if homes[0] else folder
    names = set(matches(tree.files(inside), r"(.+)\.txt"))
    return sorted(name for name in names if "_" not in name or name.rpartition("_")[2] not in names)


def listed(tree: Tree, folder: str, split: str, path: Path) -> list[str]:
    """The names of a split's pictures, without endings.

    Raises:
        DataError: No such list, an empty one, a name twice, or one that leads out of the folder.
    """
    file = f"{folder}/{split}.txt"
    try:
        text = tree.read(file).decode("utf-8-sig")
    except FileNotFoundError:
        raise no_split(path, split, sets_in(tree, folder), f"a list {tree.where(file)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{tree.where(file)}: cannot be read: {error}") from error
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{tree.where(file)}: {'a name occurs twice' if names else 'no pictures'}")
    return [name_inside(name, tree.where(file)) for name in names]


def pictures_in(tree: Tree, names: Sequence[str]) -> Files:
    """The pictures of these names in JPEGImages, whatever their ending."""
    if all(tree.has_file(f"JPEGImages/{name}.jpg") for name in names[:1]):
        files = PackedStrings(f"{name}.jpg" for name in names)
    else:
        ending = {_stem(name): name for name in tree.names("JPEGImages") if name.endswith(PICTURE_SUFFIXES)}
        files = PackedStrings(ending.get(name, f"{name}.jpg") for name in names)
    return TreeFiles(tree, PackedStrings(f"JPEGImages/{file}" for file in files), files)


def names_of(files: Files) -> list[str]:
    """Their names without endings."""
    return [_stem(name) for name in files.names]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _homes(tree: Tree) -> list[str]:
    """Folders that hold JPEGImages, down to two levels; "" is the tree itself."""
    if "JPEGImages" in tree.folders():
        return [""]
    for outer in ("", "VOCdevkit"):
        inner = [f"{outer}/{name}" if outer else name for name in tree.folders(outer)]
        found = [name for name in inner if "JPEGImages" in tree.folders(name)]
        if found:
            return found
    return []
