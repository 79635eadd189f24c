"""Any line of a large text file, found by its place: 8 bytes of memory a line, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64

_CHUNK = 1 << 24
_NEWLINE = 10
_MARK = b"\xef\xbb\xbf"
"""What some editors put before UTF-8."""


class Lines:
    """The lines of a file. Nothing stays open.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ends = []
        size = 0
        with path.open("rb") as file:
            first = len(_MARK) if file.read(len(_MARK)) == _MARK else 0
            file.seek(0)
            while chunk := file.read(_CHUNK):
                ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == _NEWLINE) + (size + 1))
                size += len(chunk)
        self._bounds: Int64[np.ndarray, " n"] = np.concatenate(([first], *ends)).astype(np.int64)
        if self._bounds[-1] < size:
            self._bounds = np.append(self._bounds, size)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def sizes(self) -> Int64[np.ndarray, " n"]:
        """Bytes of each line, its end included."""
        return np.diff(self._bounds)

    def __getitem__(self, index: int) -> bytes:
        """A line without its end. Raises IndexError and OSError."""
        if not 0 <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        with self.path.open("rb", buffering=0) as file:
            return self._cut(file, index)

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for index in range(len(self)):
                yield self._cut(file, index)

    def _cut(self, file: IO[bytes], index: int) -> bytes:
        start, end = self._bounds[index : index + 2].tolist()
        file.seek(start)
        return file.read(end - start).rstrip(b"\r\n")
