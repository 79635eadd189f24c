"""Which formats a folder or file could be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allsight.data.readers.file_names import is_hidden
from allsight.data.readers.files import ARCHIVE_SUFFIXES
from allsight.data.readers.formats import FORMATS, format_class
from allsight.data.readers.found import Found
from allsight.data.readers.tree import Tree, open_tree
from allsight.data.shards.catalogue import listed_splits
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
    tree = _tree(path)
    # Shards that are listed may be many and large, and other formats would open them to see what they hold.
    formats = ("webdataset",) if listed_splits(tree) else FORMATS
    found = [(format, _found(format, path, tree)) for format in formats]
    return [Candidate(format, one.reason, one.splits) for format, one in found if one is not None]


def candidate_for(path: Path, format: str) -> Candidate:
    """What a format that was named finds.

    Raises:
        DataError: Nothing, or an archive is damaged.
    """
    found = _found(format, path, _tree(path))
    if found is None:
        fits = ", ".join(candidate.format for candidate in detect_format(path))
        hint = f"what fits is {fits}" if fits else "see the table of formats in docs/data_formats.md"
        raise DataError(f"{path}: nothing that {format} could read; {hint}")
    return Candidate(format, found.reason, found.splits)


def _tree(path: Path) -> Tree:
    """What formats look at; for a single file, the folder around it."""
    return open_tree(path if path.is_dir() or path.suffix in ARCHIVE_SUFFIXES else path.parent)


def _found(format: str, path: Path, tree: Tree) -> Found | None:
    cls = format_class(format)
    is_tree = path.is_dir() or path.suffix in ARCHIVE_SUFFIXES
    return cls.found_in(path, tree) if is_tree or getattr(cls, "reads_single_files", False) else None


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
    raise unknown_format(path)


def unknown_format(path: Path) -> DataError:
    """The error for a path that no format fits; says where data sets are, if they lie a level below."""
    below = _formats_below(path)
    hint = f"its folders are data sets: {', '.join(below)}" if below else f"formats are {', '.join(FORMATS)}"
    return DataError(f"{path}: no format fits what is there; {hint}; say format:path to see what is missing")


def _formats_below(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    found = {folder.name: detect_format(folder) for folder in folders[:_LOOKED_INTO]}
    return [f"{name} ({', '.join(c.format for c in all)})" for name, all in found.items() if all]
