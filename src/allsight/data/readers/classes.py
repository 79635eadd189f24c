"""Class names of a data set, from its `classes.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def parse_classes(data: bytes, path: str) -> ClassTable:
    """What a `classes.json` holds; `path` says where it lies.

    The file is a list, or an object with a list `classes` (and perhaps `ignore`). An item is a name, or an
    object with `name` or `synonyms` (the first counts), perhaps a key (`wnid` or `key`) and an `index`.

    Raises:
        DataError: Not JSON, another structure, a class named twice, indices that are not 0 to n - 1, or an
            `ignore` that is no value of 8 bits.
    """
    try:
        tree = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    items = tree.get("classes") if isinstance(tree, dict) else tree
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: expected a list of classes, or an object with a list 'classes'")
    indices = [item.get("index", n) if isinstance(item, dict) else n for n, item in enumerate(items)]
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(len(items))):
        raise DataError(
            f"{path}: class indices are {indices[:8]}...; expected 0 to {len(items) - 1}, each once"
        )
    pairs = dict(zip(indices, (_key_and_name(item, path) for item in items), strict=True))
    keys = tuple(pairs[n][0] for n in range(len(items)))
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise DataError(f"{path}: class {twice[0]!r} occurs twice")
    ignore = tree.get("ignore") if isinstance(tree, dict) else None
    if ignore is not None and not (type(ignore) is int and 0 <= ignore <= 255):
        raise DataError(
            f"{path}: 'ignore' is {ignore!r}; expected the label-map value 0 to 255 of unlabelled pixels"
        )
    return ClassTable(keys, tuple(pairs[n][1] for n in range(len(items))), ignore)


def _key_and_name(item: Any, path: str) -> tuple[str, str]:
    if isinstance(item, str):
        return item, item
    if isinstance(item, dict):
        synonyms = item.get("synonyms") or [None]
        name = item.get("name") or synonyms[0]
        key = item.get("wnid") or item.get("key") or name
        if isinstance(name, str) and isinstance(key, str):
            return key, name
    raise DataError(f"{path}: class {item!r} has no name; expected a text, or an object with 'name'")
