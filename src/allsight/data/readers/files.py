"""Named files in a folder, a zip, a tar or a row of archives (shards), all read the same way.

Nothing stays open: each read opens the file, goes to its place and closes it again. That costs some ten
microseconds on a local disk, and makes readers safe to pickle, to fork and to use from threads.
"""

from __future__ import annotations

import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from allsight.data.decode import MAX_PIXELS
from allsight.data.readers.file_names import is_hidden, leads_outside
from allsight.data.readers.folders import FolderFiles
from allsight.data.readers.packed import PackedStrings
from allsight.types import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar")
_UNIX = 3
"""What zips call the system they were made on."""


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


MAX_UNPACKED_BYTES = 8 * MAX_PIXELS
"""A compressed member of an archive that unpacks to more is refused as a decompression bomb: some 680 MiB, an
uncompressed picture of `MAX_PIXELS` with four channels of 16 bits. Members that lie there as they are may
have any size, as files in folders may."""


class ZipFiles:
    """The files in a zip, stored or deflated.

    Raises:
        DataError: Not a zip, or cut short; a member that is encrypted, compressed otherwise, a link or a
            device; a name that leads outside. On reading, OSError: a damaged member, or one that unpacks to
            more than `MAX_UNPACKED_BYTES` or than the archive says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                every = archive.infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path}: not a zip, or cut short ({error}); get or write it anew") from error
        for member in every:
            _check_member(path, member.orig_filename, _is_special(member))
        members = [m for m in every if not m.is_dir() and not is_hidden(m.filename)]
        for member in members:
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{path}: {member.filename} is encrypted or compressed by method {member.compress_type}; "
                    "expected stored or deflated members"
                )
        members.sort(key=lambda member: member.filename)
        self.names = PackedStrings(member.filename for member in members)
        self._places = np.array(
            [(m.header_offset, m.compress_size, m.file_size, m.compress_type, m.CRC) for m in members],
            dtype=np.int64,
        ).reshape(-1, 5)

    def read(self, index: int) -> bytes:
        header, packed_size, size, method, checksum = self._places[index].tolist()
        if method == zipfile.ZIP_DEFLATED and size > MAX_UNPACKED_BYTES:
            raise OSError(
                f"a compressed member of {size} bytes; expected at most {MAX_UNPACKED_BYTES}; "
                "if you trust it, unpack the zip"
            )
        with self.path.open("rb", buffering=0) as file:
            file.seek(header)
            # The local header repeats the name, and may have another extra field than the central directory.
            local = file.read(30)
            if len(local) < 30:
                raise OSError("damaged zip member: no header")
            name_size, extra_size = struct.unpack("<26xHH", local)
            file.seek(header + 30 + name_size + extra_size)
            data = file.read(packed_size)
        if method == zipfile.ZIP_DEFLATED:
            try:
                # One byte more than there should be, to notice those that go on.
                data = zlib.decompressobj(wbits=-15).decompress(data, size + 1)
            except zlib.error as error:
                raise OSError(f"damaged zip member: {error}") from error
        if len(data) != size:
            raise OSError(f"damaged zip member: it holds other than the {size} bytes that the zip says")
        if zlib.crc32(data) != checksum:
            raise OSError("damaged zip member: its checksum differs")
        return data

    def where(self, index: int) -> str:
        return f"{self.path}, member {self.names[index]}"


class TarFiles:
    """The files in an uncompressed tar. Opening it reads the header of every member.

    Raises:
        DataError: Not such a tar, or cut short; a link, device, pipe or sparse file; a name that leads
            outside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        members = []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    special = member.issparse() or not (member.isfile() or member.isdir())
                    _check_member(path, member.name, special)
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
        return FolderFiles(path / split, home=path)
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
        DataError: Another kind of file, or a damaged one; links, devices, or names that lead outside.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file; expected a .zip or an uncompressed .tar")
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


def _check_member(path: Path, name: str, special: bool) -> None:
    """Refuse what could point outside an archive, though nothing is ever extracted."""
    if leads_outside(name):
        raise DataError(
            f"{path}: the name {name[:200]!r} leads outside the archive; expected relative names without "
            "'..'; whoever made it meant harm or erred, so take a copy you trust"
        )
    if special:
        raise DataError(f"{path}: {name!r} is a link, device or sparse file; expected regular files only")


def _is_special(member: zipfile.ZipInfo) -> bool:
    """Whether a zip made on Unix says that a member is a link, device, pipe or socket."""
    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == _UNIX else 0
    return kind not in (0, stat.S_IFREG, stat.S_IFDIR)
