"""What a format recognises in a folder or file, and the error where a split is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from allsight.data.readers.tree import Tree
from allsight.types import DataError


@dataclass(frozen=True)
class Found:
    """A format says that it can read this.

    Args:
        reason: What gave it away, for people.
        splits: Names of the splits.
    """

    reason: str
    splits: tuple[str, ...]


def no_split(path: Path, split: str, there: Sequence[str], expected: str) -> DataError:
    """The error to raise; it lists the splits that are there."""
    listed = f"there are: {', '.join(there)}" if there else "there is nothing that looks like a split"
    return DataError(f"{path}: no split {split!r}; {listed}; expected {expected}")


def parts_of_splits(tree: Tree) -> dict[str, list[str]]:
    """Split -> its folder or archive at the top of a data set, or its shards `SPLIT-00000`, ... in order."""
    parts: dict[str, list[str]] = {}
    for name in tree.folders():
        parts.setdefault(re.sub(r"-\d+$", "", name), []).append(name)
    return {split: parts[split] for split in sorted(parts)}


def matches(names: Iterable[str], pattern: str) -> list[str]:
    """The first group of `pattern` in each name it fits whole, sorted, each once."""
    found = (re.fullmatch(pattern, name) for name in names)
    return sorted({match[1] for match in found if match})
