"""Which formats a folder or file could be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allsight.data.readers.files import ARCHIVE_SUFFIXES, is_hidden
from allsight.data.readers.formats import FORMATS, format_class
from allsight.data.readers.tree import open_tree
from allsight.types import DataError

_LOOKED_INTO = 50
"""So many subfolders are looked into where nothing is found, to point at them."""


@dataclass(frozen=True)
class Candidate:
    """A format that can read it.

    Args:
        format: Key of `FORMATS`.
        reason: What gave it away, for people.
        splits: Names of its splits.
    """

    format: str
    reason: str
    splits: tuple[str, ...]


def detect_format(path: Path) -> list[Candidate]:
    """All formats that find their files in a folder, an archive or a single file; most have none or one.

    COCO's folder has several: boxes, captions, segments and questions of the same pictures.

    Raises:
        DataError: The path does not exist, or an archive is damaged.
    """
    if not path.exists():
        raise DataError(f"{path}: does not exist")
    is_tree = path.is_dir() or path.suffix in ARCHIVE_SUFFIXES
    tree = open_tree(path) if is_tree else open_tree(path.parent)
    candidates = []
    for format in FORMATS:
        cls = format_class(format)
        if is_tree or getattr(cls, "reads_single_files", False):
            found = cls.found_in(path, tree)
            if found is not None:
                candidates.append(Candidate(format, found.reason, found.splits))
    return candidates


def only_format(path: Path) -> str:
    """The one format that a folder or file has.

    Raises:
        DataError: None (says where the data sets are, if they lie a level below), or several.
    """
    candidates = detect_format(path)
    if len(candidates) == 1:
        return candidates[0].format
    if candidates:
        found = ", ".join(f"{c.format} ({c.reason})" for c in candidates)
        raise DataError(f"{path}: several formats fit: {found}; say which: {candidates[0].format}:{path}")
    below = _formats_below(path)
    hint = f"its folders are data sets: {', '.join(below)}" if below else f"formats are {', '.join(FORMATS)}"
    raise DataError(f"{path}: no format fits what is there; {hint}; say format:path to see what is missing")


def _formats_below(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    found = {folder.name: detect_format(folder) for folder in folders[:_LOOKED_INTO]}
    return [f"{name} ({', '.join(c.format for c in all)})" for name, all in found.items() if all]
