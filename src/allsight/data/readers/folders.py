"""The files below a folder on disk, and the reading of one of them."""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path

from allsight.data.readers.file_names import is_hidden
from allsight.data.readers.packed import PackedStrings
from allsight.types import DataError


class FolderFiles:
    """The files below a folder, at any depth. Hidden ones and those of macOS archives are passed over.

    Links are followed wherever they lead, as people link pictures in from elsewhere. Each folder is visited
    once, though, so that a link to a folder above it, or to one that is there anyway, adds nothing.

    Args:
        root: The folder; names are below it.
        home: The data set's folder; links to places in it do not count as leading outside. Default `root`.

    Raises:
        DataError: A folder cannot be listed; what it holds would be missing in silence.
    """

    def __init__(self, root: Path, home: Path | None = None) -> None:
        self.root = root
        self._homes = {os.path.realpath(home or root), os.path.realpath(root)}
        self._parents: dict[str, str] = {}
        self.again: tuple[str, ...] = ()
        """Folders, by their names below the root, that are links to folders visited by another name."""
        self.outside = 0
        """Links to places outside `home`."""
        self.names = PackedStrings(sorted(self._walk()))
        self._parents.clear()

    def read(self, index: int) -> bytes:
        return read_file(f"{self.root}/{self.names[index]}")

    def where(self, index: int) -> str:
        return str(self.root / self.names[index])

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of the links that were met."""
        again, out = len(self.again), self.outside
        return (
            *([f"{again} links to folders that were visited already passed over"] if again else []),
            *([f"{out} links lead outside the data set's folder; they are followed"] if out else []),
        )

    def _walk(self) -> list[str]:
        found: list[str] = []
        again: list[str] = []
        seen: set[tuple[int, int]] = set()
        # Links wait until all real folders were visited, whose names are the ones that count.
        real, links = deque([""]), deque[str]()
        while real or links:
            folder = (real or links).popleft()
            try:
                status = os.stat(f"{self.root}/{folder}")
                entries = sorted(os.scandir(f"{self.root}/{folder}"), key=lambda entry: entry.name)
            except FileNotFoundError:
                continue  # gone in the meantime
            except OSError as error:
                place = os.path.join(self.root, folder)
                raise DataError(
                    f"{place}: the folder cannot be listed ({error.strerror}); get the right to read it, "
                    "or move it out of the data set"
                ) from error
            key = (status.st_dev, status.st_ino)
            if key in seen:
                again.append(folder)
                continue
            seen.add(key)
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                is_link = entry.is_symlink()
                if is_link:
                    self.outside += self._leads_outside(entry.path)
                if _is_folder(entry):
                    (links if is_link else real).append(name)
                else:
                    found.append(name)
        self.again = tuple(again)
        return found

    def _leads_outside(self, link: str) -> bool:
        """Whether the place that a link names lies outside. A link on the way counts where it is met."""
        parent, name = os.path.split(os.path.join(os.path.dirname(link), os.readlink(link)))
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        place = os.path.normpath(os.path.join(self._parents[parent], name))
        return not any(place == home or place.startswith(f"{home}/") for home in self._homes)


def read_file(path: str) -> bytes:
    """The whole of a file on disk.

    Raises:
        OSError: There is none, it cannot be read, or it is no regular file: a folder, or a pipe, socket or
            device, which is never opened, since that may wait for ever or do something.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    # Without pathlib and buffers, which together take as long as the system does.
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
