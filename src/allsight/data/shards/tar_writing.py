"""The bytes of a tar whose samples are files that agree up to the first dot, the same on every machine."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from typing import Final

_BLOCK = tarfile.BLOCKSIZE

TAR_END: Final = bytes(2 * _BLOCK)
"""What a tar ends with."""


def tar_members(key: str, files: Mapping[str, bytes]) -> bytes:
    """The files (ending -> bytes) of one sample as members of a tar, in the order given."""
    pieces: list[bytes] = []
    for ending, data in files.items():
        info = tarfile.TarInfo(f"{key}.{ending}")
        # Nothing of this machine or moment: the same samples give the same bytes.
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        pieces += [header, data, bytes(padded_size(len(data)) - len(data))]
    return b"".join(pieces)


def padded_size(size: int) -> int:
    """Bytes that so many bytes take in a tar, without their header."""
    return -(-size // _BLOCK) * _BLOCK
