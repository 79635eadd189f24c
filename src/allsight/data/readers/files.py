"""Named files in a folder, a zip, a tar or a row of archives (shards), all read the same way.

Nothing stays open: each read opens the file, goes to its place and closes it again. That costs some ten
microseconds on a local disk, and makes readers safe to pickle, to fork and to use from threads.
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from allsight.data.readers.packed import PackedStrings
from allsight.types import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar")


@runtime_checkable
class Files(Protocol):
    """A fixed, sorted set of files, known by their names below its root ("cat/0012.jpg")."""

    names: PackedStrings

    def read(self, index: int) -> bytes:
        """The whole of one file. Raises OSError."""
        ...

    def where(self, index: int) -> str:
        """Where it lies, for errors."""
        ...


class FolderFiles:
    """The files below a folder, at any depth. Hidden ones and those of macOS archives are passed over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        found = []
        for folder, subfolders, files in os.walk(root, followlinks=True):
            subfolders[:] = [name for name in subfolders if not is_hidden(name)]
            below = Path(folder).relative_to(root).as_posix()
            found += [name if below == "." else f"{below}/{name}" for name in files if not is_hidden(name)]
        self.names = PackedStrings(sorted(found))

    def read(self, index: int) -> bytes:
        # Without pathlib and buffers, which together take as long as the system does.
        with open(f"{self.root}/{self.names[index]}", "rb", buffering=0) as file:
            return file.read()

    def where(self, index: int) -> str:
        return str(self.root / self.names[index])


class ZipFiles:
    """The files in a zip, stored or deflated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and not is_hidden(m.filename)]
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path}: not a zip, or cut short ({error}); get or write it anew") from error
        for member in members:
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{path}: {member.filename} is encrypted or compressed by method {member.compress_type}; "
                    "expected stored or deflated members"
                )
        members.sort(key=lambda member: member.filename)
        self.names = PackedStrings(member.filename for member in members)
        self._places = np.array(
            [(m.header_offset, m.compress_size, m.compress_type, m.CRC) for m in members], dtype=np.int64
        ).reshape(-1, 4)

    def read(self, index: int) -> bytes:
        header, size, method, checksum = self._places[index].tolist()
        with self.path.open("rb", buffering=0) as file:
            file.seek(header)
            # The local header repeats the name, and may have another extra field than the central directory.
            name_size, extra_size = struct.unpack("<26xHH", file.read(30))
            file.seek(header + 30 + name_size + extra_size)
            data = file.read(size)
        try:
            data = zlib.decompress(data, wbits=-15) if method == zipfile.ZIP_DEFLATED else data
        except zlib.error as error:
            raise OSError(f"damaged zip member: {error}") from error
        if zlib.crc32(data) != checksum:
            raise OSError("damaged zip member: its checksum differs")
        return data

    def where(self, index: int) -> str:
        return f"{self.path}, member {self.names[index]}"


class TarFiles:
    """The files in an uncompressed tar. Opening it reads the header of every member."""

    def __init__(self, path: Path) -> None:
        self.path = path
        members = []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile() and not is_hidden(member.name):
                        members.append((member.name.removeprefix("./"), member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise DataError(
                f"{path}: not an uncompressed tar, or cut short ({error}); get or write it anew"
            ) from error
        members.sort()
        self.names = PackedStrings(name for name, _, _ in members)
        self._places = np.array([(at, size) for _, at, size in members], dtype=np.int64).reshape(-1, 2)

    def read(self, index: int) -> bytes:
        at, size = self._places[index].tolist()
        with self.path.open("rb", buffering=0) as file:
            file.seek(at)
            return file.read(size)

    def where(self, index: int) -> str:
        return f"{self.path}, member {self.names[index]}"


class SeveralFiles:
    """Archives end to end, in the order given."""

    def __init__(self, parts: Sequence[Files]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part.names) for part in self.parts], dtype=np.int64)
        self.names = PackedStrings(name for part in self.parts for name in part.names)

    def _part(self, index: int) -> tuple[Files, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[number], index - (int(self._ends[number - 1]) if number else 0)

    def read(self, index: int) -> bytes:
        part, place = self._part(index)
        return part.read(place)

    def where(self, index: int) -> str:
        part, place = self._part(index)
        return part.where(place)


class SomeFiles:
    """Those of some files that were picked, perhaps under other names."""

    def __init__(self, files: Files, indices: Sequence[int], rename: Callable[[str], str] = str) -> None:
        self.files = files
        self._indices = np.array(indices, dtype=np.int64)
        self.names = PackedStrings(rename(files.names[index]) for index in indices)

    def read(self, index: int) -> bytes:
        return self.files.read(int(self._indices[index]))

    def where(self, index: int) -> str:
        return self.files.where(int(self._indices[index]))


def open_split(path: Path, split: str) -> Files:
    """The files of one split, wherever a data set keeps them.

    `path` is a folder that holds, in this order of preference, a folder `SPLIT`, an archive `SPLIT.zip` or
    `SPLIT.tar`, or shards `SPLIT-00000.tar`, `SPLIT-00001.tar`, ...; or it is itself an archive with a folder
    `SPLIT`. A folder `SPLIT` that wraps all members of an archive `SPLIT.zip` is taken off their names.

    Raises:
        DataError: There is no such split (lists those there are), or a shard is missing in the row.
    """
    if path.is_file():
        files = open_archive(path)
        start = f"{split}/"
        picked = [index for index, name in enumerate(files.names) if name.startswith(start)]
        if not picked:
            there = sorted({name.split("/")[0] for name in files.names if "/" in name})
            raise _no_split(path, split, there)
        return SomeFiles(files, picked, lambda name: name.removeprefix(start))
    if (path / split).is_dir():
        return FolderFiles(path / split)
    for suffix in ARCHIVE_SUFFIXES:
        if (path / f"{split}{suffix}").is_file():
            return _unwrapped(open_archive(path / f"{split}{suffix}"), split)
    shards = shards_of(path, split)
    if not shards:
        raise _no_split(path, split, splits_there(path))
    return _unwrapped(SeveralFiles([open_archive(shard) for shard in shards]), split)


def has_split(path: Path, split: str) -> bool:
    """Whether `open_split` would find it, without opening large archives in a folder."""
    if path.is_file():
        return any(name.startswith(f"{split}/") for name in open_archive(path).names)
    return split in splits_there(path)


def splits_there(path: Path) -> list[str]:
    """Names of what looks like a split in a data set's folder."""
    found = set()
    for entry in path.iterdir():
        if entry.is_dir() and not is_hidden(entry.name):
            found.add(entry.name)
        elif entry.suffix in ARCHIVE_SUFFIXES:
            found.add(re.sub(r"-\d+$", "", entry.stem))
    return sorted(found)


def shards_of(path: Path, split: str) -> list[Path]:
    """The archives `SPLIT-00000.tar`, `SPLIT-00001.zip`, ... of a folder, in order.

    Raises:
        DataError: One is missing in the row.
    """
    numbered = {}
    for entry in path.iterdir():
        match = re.fullmatch(rf"{re.escape(split)}-(\d+)", entry.stem)
        if match and entry.suffix in ARCHIVE_SUFFIXES:
            numbered[int(match[1])] = entry
    order = sorted(numbered)
    if order:
        missing = sorted(set(range(order[-1] + 1)) - set(order))
        # Some writers count from 1.
        if missing and missing != [0]:
            raise DataError(
                f"{path}: shard {missing[0]} of {split} is missing; found {', '.join(_few(numbered))}; "
                "get it, or number the rest without gaps"
            )
    return [numbered[number] for number in order]


def _few(numbered: dict[int, Path]) -> Iterable[str]:
    names = [numbered[number].name for number in sorted(numbered)]
    return names if len(names) <= 4 else [*names[:2], "...", names[-1]]


def _no_split(path: Path, split: str, there: list[str]) -> DataError:
    listed = f"there are: {', '.join(there)}" if there else "there is nothing that looks like a split"
    return DataError(
        f"{path}: no split {split!r}; {listed}; "
        f"expected a folder {split}/, {split}.zip, {split}.tar or {split}-00000.tar"
    )


def open_archive(path: Path) -> Files:
    """The files of a .zip or an uncompressed .tar.

    Raises:
        DataError: Another kind of file, or a damaged one.
    """
    if path.suffix == ".zip":
        return ZipFiles(path)
    if path.suffix == ".tar":
        return TarFiles(path)
    raise DataError(f"{path}: expected a folder, a .zip or an uncompressed .tar")


def _unwrapped(files: Files, split: str) -> Files:
    start = f"{split}/"
    if len(files.names) and all(name.startswith(start) for name in files.names):
        return SomeFiles(files, range(len(files.names)), lambda name: name.removeprefix(start))
    return files


def is_hidden(name: str) -> bool:
    """Whether a path holds a part that file systems and archivers keep for themselves."""
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))
