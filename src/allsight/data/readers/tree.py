"""A data set's folder or archive as a tree of files that are read by name, whatever it is packed in."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from allsight.data.readers.file_names import is_hidden, leads_outside
from allsight.data.readers.files import ARCHIVE_SUFFIXES, Files, open_archive
from allsight.data.readers.folders import FolderFiles, read_file
from allsight.data.readers.packed import PackedStrings
from allsight.types import DataError


@runtime_checkable
class Tree(Protocol):
    """Files by their names below a root, with / between folders. Picklable; nothing stays open."""

    def read(self, name: str) -> bytes:
        """The whole of one file. Raises OSError."""
        ...

    def where(self, name: str) -> str:
        """Where it lies, for errors."""
        ...

    def has_file(self, name: str) -> bool: ...

    def names(self, folder: str = "") -> PackedStrings:
        """All files below a folder at any depth, sorted, named from there; none without such a folder."""
        ...

    def folders(self, folder: str = "") -> list[str]:
        """Folders directly in a folder, sorted; archives that stand for one count."""
        ...

    def files(self, folder: str = "") -> list[str]:
        """Files directly in a folder, sorted."""
        ...

    def below(self, folder: str) -> Tree | None:
        """A folder as a tree of its own: the folder, or `FOLDER.zip` or `FOLDER.tar` in its place."""
        ...


class FolderTree:
    """A folder on disk. Nothing is listed before it is asked for.

    Args:
        root: The folder.
        home: The data set's folder, for what is said of links that lead outside. Default `root`.
    """

    def __init__(self, root: Path, home: Path | None = None) -> None:
        self.root = root
        self.home = home or root

    def read(self, name: str) -> bytes:
        return read_file(f"{self.root}/{name}")

    def where(self, name: str) -> str:
        return str(self.root / name)

    def has_file(self, name: str) -> bool:
        return (self.root / name).is_file()

    def names(self, folder: str = "") -> PackedStrings:
        return FolderFiles(self.root / folder).names

    def folders(self, folder: str = "") -> list[str]:
        found = set()
        for entry in self._entries(folder):
            if entry.is_dir():
                found.add(entry.name)
            elif entry.suffix in ARCHIVE_SUFFIXES:
                found.add(entry.stem)
        return sorted(found)

    def files(self, folder: str = "") -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_file())

    def _entries(self, folder: str) -> list[Path]:
        place = self.root / folder
        return [e for e in place.iterdir() if not is_hidden(e.name)] if place.is_dir() else []

    def below(self, folder: str) -> Tree | None:
        if (self.root / folder).is_dir():
            return FolderTree(self.root / folder, self.home)
        for suffix in ARCHIVE_SUFFIXES:
            archive = self.root / f"{folder}{suffix}"
            if archive.is_file():
                return _unwrapped(ArchiveTree(open_archive(archive)), PurePosixPath(folder).name)
        return None


class ArchiveTree:
    """The files of an archive, or those below one of its folders."""

    def __init__(self, files: Files, root: str = "") -> None:
        self._files = files
        self._root = root

    def read(self, name: str) -> bytes:
        index = self._find(name)
        if index is None:
            raise FileNotFoundError(f"no such member: {self._root}{name}")
        return self._files.read(index)

    def where(self, name: str) -> str:
        index = self._find(name)
        return f"member {self._root}{name}" if index is None else self._files.where(index)

    def has_file(self, name: str) -> bool:
        return self._find(name) is not None

    def names(self, folder: str = "") -> PackedStrings:
        start = self._root + (f"{folder}/" if folder else "")
        first, end = self._range(start)
        return PackedStrings(self._files.names[index][len(start) :] for index in range(first, end))

    def folders(self, folder: str = "") -> list[str]:
        return sorted({name.split("/")[0] for name in self.names(folder) if "/" in name})

    def files(self, folder: str = "") -> list[str]:
        return [name for name in self.names(folder) if "/" not in name]

    def below(self, folder: str) -> Tree | None:
        start = f"{self._root}{folder}/"
        first, end = self._range(start)
        return ArchiveTree(self._files, start) if end > first else None

    def _range(self, start: str) -> tuple[int, int]:
        """The members whose names begin so, which are neighbours in a sorted list."""
        if not start:
            return 0, len(self._files.names)
        end = start[:-1] + chr(ord(start[-1]) + 1)
        return bisect_left(self._files.names, start), bisect_left(self._files.names, end)

    def _find(self, name: str) -> int | None:
        full = self._root + name
        index = bisect_left(self._files.names, full)
        return index if index < len(self._files.names) and self._files.names[index] == full else None


class TreeFiles:
    """Some files of a tree as `Files`: in the order given, called as given or otherwise."""

    def __init__(self, tree: Tree, paths: PackedStrings, names: PackedStrings | None = None) -> None:
        self.names = paths if names is None else names
        self._tree, self._paths = tree, paths

    def read(self, index: int) -> bytes:
        return self._tree.read(self._paths[index])

    def where(self, index: int) -> str:
        return self._tree.where(self._paths[index])


def all_files(tree: Tree) -> Files:
    """Every file of a tree, at any depth."""
    return (
        FolderFiles(tree.root, tree.home) if isinstance(tree, FolderTree) else TreeFiles(tree, tree.names())
    )


def open_tree(path: Path) -> Tree:
    """A folder, a .zip or an uncompressed .tar; one folder that wraps all of an archive is taken off.

    Raises:
        DataError: Another kind of file, or a damaged archive.
    """
    if path.is_dir():
        return FolderTree(path)
    files = open_archive(path)
    tree = ArchiveTree(files)
    if not len(files.names):
        return tree
    return _unwrapped(tree, files.names[0].split("/")[0])


def name_inside(name: str, said_by: str) -> str:
    """A file's name that a data set states, after making sure that it stays in the data set's folder.

    Raises:
        DataError: It is absolute, climbs out with `..`, or is no possible name.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if leads_outside(name) or not path.parts or ":" in path.parts[0]:
        raise DataError(
            f"{said_by}: the file name {name[:200]!r} leads out of the data set's folder; "
            "expected a name below it"
        )
    return str(path)


def check_text(text: str, said_by: str) -> str:
    """A text of a json file, after making sure that it can be written as UTF-8.

    Raises:
        DataError: It holds half a character (a lone surrogate, such as `\\ud800`).
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{said_by}: the text {text[:40]!r} holds half a character ({error.reason})"
        ) from None
    return text


def _unwrapped(tree: ArchiveTree, folder: str) -> Tree:
    inner = tree.below(folder)
    return inner if inner is not None and len(inner.names()) == len(tree.names()) else tree
