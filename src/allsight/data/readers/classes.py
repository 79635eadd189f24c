"""Class names of a data set, from its `classes.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allsight.data.readers.tree import Tree
from allsight.types import DataError


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of their labels.

    Args:
        keys: What the data calls them: folder names, prefixes, WordNet ids.
        names: What people call them.
        ignore: Label-map value of pixels nobody labelled, if the file states one.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    ignore: int | None = None


def read_classes(path: Path) -> ClassTable | None:
    """Read `classes.json` (see `parse_classes`); None if there is no such file."""
    try:
        return parse_classes(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def parse_classes(data: bytes, where: str) -> ClassTable:
    """What a `classes.json` holds; `where` it lies is for errors.

    The file is a list, or an object with a list `classes` (and perhaps `ignore`). An item is a name, or an
    object with `name` or `synonyms` (the first counts), perhaps a key (`wnid` or `key`) and an `index`.

    Raises:
        DataError: Not JSON, another structure, a class named twice, indices that are not 0 to n - 1, or an
            `ignore` that is no value of 8 bits.
    """
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    items = tree.get("classes") if isinstance(tree, dict) else tree
    if not isinstance(items, list) or not items:
        raise DataError(f"{where}: expected a list of classes, or an object with a list 'classes'")
    indices = [item.get("index", n) if isinstance(item, dict) else n for n, item in enumerate(items)]
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(len(items))):
        raise DataError(
            f"{where}: class indices are {indices[:8]}...; expected 0 to {len(items) - 1}, each once"
        )
    pairs = dict(zip(indices, (_key_and_name(item, where) for item in items), strict=True))
    keys = tuple(pairs[n][0] for n in range(len(items)))
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise DataError(f"{where}: class {twice[0]!r} occurs twice")
    ignore = tree.get("ignore") if isinstance(tree, dict) else None
    if ignore is not None and not (type(ignore) is int and 0 <= ignore <= 255):
        raise DataError(
            f"{where}: 'ignore' is {ignore!r}; expected the label-map value 0 to 255 of unlabelled pixels"
        )
    return ClassTable(keys, tuple(pairs[n][1] for n in range(len(items))), ignore)


def classes_in(tree: Tree) -> ClassTable | None:
    """The classes that a data set states in its `classes.json` or `classes.txt` (a name a line), if any.

    Raises:
        DataError: As `parse_classes`, or no UTF-8.
    """
    if tree.has_file("classes.json"):
        return parse_classes(tree.read("classes.json"), tree.where("classes.json"))
    if not tree.has_file("classes.txt"):
        return None
    where = tree.where("classes.txt")
    try:
        lines = tree.read("classes.txt").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
    names = tuple(line.strip() for line in lines if line.strip())
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice:
        raise DataError(f"{where}: {f'class {twice!r} occurs twice' if twice else 'no names'}")
    return ClassTable(names, names)


def _key_and_name(item: Any, where: str) -> tuple[str, str]:
    if isinstance(item, str):
        return item, item
    if isinstance(item, dict):
        synonyms = item.get("synonyms") or [None]
        name = item.get("name") or synonyms[0]
        key = item.get("wnid") or item.get("key") or name
        if isinstance(name, str) and isinstance(key, str):
            return key, name
    raise DataError(f"{where}: class {item!r} has no name; expected a text, or an object with 'name'")
