"""Many short strings in one buffer, so that a reader of a million pictures is small and quick to send."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """An immutable sequence of strings (or of bytes, see `raw`).

    A list of a million strings costs 60 bytes each beside their letters, and is copied page by page in every
    worker process, because looking at a string changes its reference count. Two arrays are not.
    """

    def __init__(self, strings: Iterable[str | bytes]) -> None:
        parts = [
            text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in strings
        ]
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._letters = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends)

    def raw(self, index: int) -> bytes:
        """One of them as bytes."""
        start = int(self._ends[index - 1]) if index else 0
        return self._letters[start : int(self._ends[index])]

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        return self.raw(index).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
