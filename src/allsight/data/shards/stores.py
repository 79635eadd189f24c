"""Where shards lie: a folder, or a place that is reached by a URL; all are read by name, offset and size."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable


class RemoteError(ConnectionError):
    """A server could not be reached, or gave no whole answer, however often it was asked. One line.

    It is no fault of a sample, so it ends a run, which can be resumed, and replaces no sample by another.
    """


@dataclass
class Counts:
    """What reading has cost so far, in this process.

    Args:
        requests: Requests that were sent to servers, retries included.
        retries: How many of them repeated one that failed.
        received: Bytes that came back.
        cache_hits: Blocks that lay in the node's cache.
        cache_misses: Blocks that did not, or were damaged.
    """

    requests: int = 0
    retries: int = 0
    received: int = 0
    cache_hits: int = 0
    cache_misses: int = 0


@runtime_checkable
class Store(Protocol):
    """Files by name. Picklable; may be used by several threads."""

    @property
    def counts(self) -> Counts:
        """What reading has cost so far."""
        ...

    def where(self, name: str) -> str:
        """The file's path or address, for errors."""
        ...

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `start`, or all. Raises FileNotFoundError, OSError or RemoteError."""
        ...


@dataclass(frozen=True)
class FolderStore:
    """The files of a folder. Nothing stays open."""

    root: Path
    counts: Counts = field(default_factory=Counts, compare=False)

    def where(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        path = f"{self.root}/{name}"
        if size is None:
            return Path(path).read_bytes()
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            data = os.pread(handle, size, start)
            while len(data) < size and (more := os.pread(handle, size - len(data), start + len(data))):
                data += more
            return data
        finally:
            os.close(handle)


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path."""
    scheme, mark, _ = place.partition("://")
    return bool(mark) and scheme.replace("+", "").replace(".", "").isalnum()
