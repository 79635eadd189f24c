"""The index beside a tar, `NAME.tar.index`: where each sample lies, and checksums of everything.

All numbers are little-endian; checksums are CRC-32 as in zlib and zip.

    byte   0   8 bytes   "ALLSIDX" and a zero byte
           8   uint16    version, 1
          10   uint16    bytes of an entry, 20
          12   4 bytes   zeros
          16   uint64    samples
          24   uint64    bytes of the tar
          32   uint32    checksum of the tar
          36   uint32    checksum of all entries
          40   20 bytes  zeros
          60   uint32    checksum of bytes 0 to 59
    then, for each sample in the tar's order:
           0   uint64    offset of its first header in the tar
           8   uint32    its bytes: headers, files and padding, all in a row
          12   uint32    checksum of these bytes
          16   int32     class index, from a file `.cls` that holds a number; -1 without one
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from allsight.data.shards.content import understood
from allsight.data.shards.members import Span, spans
from allsight.types import DataError

SUFFIX = ".index"
HEADER_BYTES = 64
ENTRY = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("label", "<i4")])

_MAGIC = b"ALLSIDX\0"
_VERSION = 1
_HEADER = struct.Struct("<8sHH4xQQII20x")
_REMEDY = "write it anew with `allsight data index`"
_PIECE = 2**20


@dataclass(frozen=True)
class IndexHeader:
    """What an index says of its tar before the entries begin."""

    samples: int
    tar_bytes: int
    tar_crc32: int
    entries_crc32: int

    @property
    def file_bytes(self) -> int:
        """Size of the whole index."""
        return HEADER_BYTES + self.samples * ENTRY.itemsize

    def pack(self) -> bytes:
        """The first 64 bytes of an index."""
        text = _HEADER.pack(
            _MAGIC,
            _VERSION,
            ENTRY.itemsize,
            self.samples,
            self.tar_bytes,
            self.tar_crc32,
            self.entries_crc32,
        )
        return text + struct.pack("<I", zlib.crc32(text))

    @classmethod
    def unpack(cls, data: bytes, where: str) -> IndexHeader:
        """The inverse of `pack`.

        Raises:
            DataError: Not an index, of another version, or damaged.
        """
        if len(data) < HEADER_BYTES or data[:8] != _MAGIC:
            raise DataError(f"{where}: not an index of a tar; {_REMEDY}")
        _, version, entry, samples, tar_bytes, tar_crc32, entries_crc32 = _HEADER.unpack(data[:60])
        if zlib.crc32(data[:60]) != struct.unpack("<I", data[60:64])[0]:
            raise DataError(f"{where}: damaged index: the checksum of its header differs; {_REMEDY}")
        if version != _VERSION or entry != ENTRY.itemsize:
            raise DataError(
                f"{where}: an index of version {version} with entries of {entry} bytes; expected version "
                f"{_VERSION} with {ENTRY.itemsize}; {_REMEDY}, or update allsight"
            )
        return cls(samples, tar_bytes, tar_crc32, entries_crc32)


@dataclass(frozen=True)
class Index:
    """A whole index in memory: 20 bytes a sample in one array, cheap to send to other processes."""

    header: IndexHeader
    entries: np.ndarray

    @classmethod
    def of(cls, entries: np.ndarray, tar_bytes: int, tar_crc32: int) -> Index:
        """The index with these entries (of type `ENTRY`)."""
        return cls(IndexHeader(len(entries), tar_bytes, tar_crc32, zlib.crc32(entries.tobytes())), entries)

    @classmethod
    def unpack(cls, data: bytes, where: str) -> Index:
        """The inverse of `pack`.

        Raises:
            DataError: Not an index, of another version, damaged, or cut short.
        """
        header = IndexHeader.unpack(data, where)
        if len(data) != header.file_bytes:
            raise DataError(
                f"{where}: the index has {len(data)} bytes; expected {header.file_bytes} for "
                f"{header.samples} samples; {_REMEDY}"
            )
        if zlib.crc32(memoryview(data)[HEADER_BYTES:]) != header.entries_crc32:
            raise DataError(f"{where}: damaged index: the checksum of its entries differs; {_REMEDY}")
        return cls(header, np.frombuffer(data, dtype=ENTRY, offset=HEADER_BYTES))

    def pack(self) -> bytes:
        """The index as it stands in its file."""
        return self.header.pack() + self.entries.tobytes()


def index_tar(path: Path) -> Index:
    """Read a tar through once and say where its samples lie.

    Raises:
        DataError: As `members.spans`, or no samples, or a sample of 4 GiB or more.
    """
    rows: list[tuple[int, int, int, int]] = []
    with mapped(path) as data:
        view = memoryview(data)
        try:
            for span in spans(data, str(path)):
                if span.end - span.begin >= 2**32:
                    raise DataError(f"{path}: the sample {span.key!r} has 4 GiB or more")
                label = label_of(span, data)
                rows.append((span.begin, span.end - span.begin, _crc(view, span.begin, span.end), label))
            if not rows:
                raise DataError(f"{path}: no samples; expected files such as KEY.jpg, KEY.cls, KEY.txt")
            return Index.of(np.array(rows, dtype=ENTRY), len(data), _crc(view, 0, len(data)))
        finally:
            view.release()


def tar_crc32(path: Path) -> int:
    """The checksum of a whole tar."""
    with mapped(path) as data:
        view = memoryview(data)
        try:
            return _crc(view, 0, len(data))
        finally:
            view.release()


def label_of(span: Span, data: bytes | mmap.mmap) -> int:
    """The number in a sample's file `.cls`, or -1."""
    members = {member.ending: member for member in span.members}
    try:
        member = members.get(understood(members, span.key).get("cls", ""))
    except DataError:
        # It is unclear which file counts: the sample is refused when it is read.
        return -1
    if member is None or member.size > 11:
        return -1
    text = bytes(data[member.data_at : member.data_at + member.size]).strip()
    return int(text) if text.isdigit() and int(text) < 2**31 else -1


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either there with all its bytes or not at all, whatever happens meanwhile."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """A file's bytes without reading them all into memory."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                yield b""
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _crc(view: memoryview, begin: int, end: int) -> int:
    checksum = 0
    for at in range(begin, end, _PIECE):
        checksum = zlib.crc32(view[at : min(at + _PIECE, end)], checksum)
    return checksum
