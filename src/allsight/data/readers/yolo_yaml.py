"""YOLO's `data.yaml`: where splits lie and what classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from allsight.data.readers.classes import classes_in
from allsight.data.readers.found import no_split
from allsight.data.readers.tree import Tree
from allsight.types import DataError


@dataclass(frozen=True)
class YoloSettings:
    """What the yaml says; empty where there is none.

    Args:
        classes: Names in the order of their numbers.
        folders: Split -> the folder of its pictures.
        keypoint_shape: Number of keypoints, and numbers for each (2 or 3).
        keypoint_pairs: See `Objects`.
    """

    classes: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    keypoint_shape: tuple[int, int] = (0, 0)
    keypoint_pairs: tuple[tuple[int, int], ...] = ()


_SPLITS = ("train", "val", "test")
_ALIASES = ("valid", "validation")
"""Folders that some tools write for `val`."""


def read_settings(tree: Tree) -> YoloSettings:
    """The settings of a data set: those of its first yaml with `names`, else names from `classes.txt`.

    Raises:
        DataError: The yaml is damaged or has another structure.
    """
    candidates = [name for name in tree.files() if name.endswith((".yaml", ".yml"))]
    for name in sorted(candidates, key=lambda name: (not name.startswith("data."), name)):
        said = _load(tree, name)
        if isinstance(said, dict) and "names" in said:
            return _settings(said, tree.where(name))
    table = classes_in(tree)
    return YoloSettings(table.names if table else ())


def split_folders(tree: Tree, settings: YoloSettings, split: str, path: Path) -> tuple[Tree, Tree]:
    """The folders of a split's pictures and texts.

    Raises:
        DataError: There is no such split; lists those there are.
    """
    for pictures, labels in _places(settings, split):
        found = tree.below(pictures)
        if found is not None and (texts := tree.below(labels)) is not None:
            return found, texts
    expected = f"{path / 'images' / split} and {path / 'labels' / split}"
    raise no_split(path, split, splits_in(tree, settings), expected)


def splits_in(tree: Tree, settings: YoloSettings) -> list[str]:
    """Splits that have both folders, with texts among the labels."""
    names = {*settings.folders, *tree.folders("images"), *tree.folders()}
    found = {n for n in names if any(_has_texts(tree, p, texts) for p, texts in _places(settings, n))}
    return sorted(found - set(_ALIASES) if "val" in found else found)


def _has_texts(tree: Tree, pictures: str, labels: str) -> bool:
    if tree.below(pictures) is None or (texts := tree.below(labels)) is None:
        return False
    return any(name.endswith(".txt") for name in texts.files())


def _places(settings: YoloSettings, split: str) -> list[tuple[str, str]]:
    """Where the pictures and texts of a split may lie, in order of preference."""
    places = []
    if split in settings.folders:
        folder = settings.folders[split]
        parts = list(PurePosixPath(folder).parts)
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            places.append((folder, "/".join([*parts[:last], "labels", *parts[last + 1 :]])))
    for name in (split, *_ALIASES) if split == "val" else (split,):
        places += [(f"images/{name}", f"labels/{name}"), (f"{name}/images", f"{name}/labels")]
    return places


def _load(tree: Tree, name: str) -> Any:
    try:
        return yaml.safe_load(tree.read(name))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{tree.where(name)}: not yaml ({' '.join(str(error).split())})") from error


def _settings(said: Mapping[str, Any], where: str) -> YoloSettings:
    names = said["names"]
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[n] for n in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str | int) for n in names):
        raise DataError(f"{where}: 'names' is {str(names)[:80]}; expected a list, or 0: name, 1: name, ...")
    folders = {}
    for split in _SPLITS:
        folder = said.get(split)
        if isinstance(folder, str):
            folders[split] = _inside(folder)
    shape = said.get("kpt_shape", (0, 0))
    if not isinstance(shape, list | tuple) or len(shape) != 2 or shape[1] not in (0, 2, 3):
        raise DataError(f"{where}: 'kpt_shape' is {shape!r}; expected [number of keypoints, 2 or 3]")
    order = said.get("flip_idx", [])
    count = int(shape[0])
    if order and (not isinstance(order, list) or sorted(order, key=str) != sorted(range(count), key=str)):
        raise DataError(f"{where}: 'flip_idx' is {order!r}; expected 0 to {count - 1}, each once")
    pairs = tuple((one, other) for one, other in enumerate(order) if one < other)
    return YoloSettings(tuple(map(str, names)), folders, (count, int(shape[1])), pairs)


def _inside(folder: str) -> str:
    """A folder below the data set's: tools write it from their own place, with `../` or `./` before it."""
    parts = [part for part in PurePosixPath(folder.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    return "/".join(parts)
