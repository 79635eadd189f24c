"""A folder of the node that keeps what came from servers, in blocks, up to a limit.

Several processes share it without locks: a block appears by an atomic rename, is checked whenever it is read,
and whoever finds one gone or damaged fetches it anew. Two processes that want the same block at the same time
may both fetch it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import time
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

from allsight.config import ConfigError
from allsight.data.shards.stores import Store

_HEADER = struct.Struct("<4sII")
_MAGIC = b"ALBK"
_FULL = 0.9
_STALE_S = 3600.0
_numbers = itertools.count()


class BlockCache:
    """Blocks on disk, the least recently used of which make way for new ones.

    The blocks are dealt to drawers by name, each with its part of the limit, so that whoever adds one needs
    to look at one drawer only. All processes of a node must use the same limit and block size.

    Args:
        folder: Where; made when needed. May be lost at any time.
        limit_bytes: Most that all blocks may take together.
        block_bytes: Size of a block; a file's last one is shorter.

    Raises:
        ConfigError: The limit holds fewer than four blocks.
    """

    def __init__(self, folder: Path, limit_bytes: int, block_bytes: int = 2**20) -> None:
        if limit_bytes < 4 * block_bytes:
            raise ConfigError(
                f"cache_mb: {limit_bytes} bytes hold fewer than four blocks of {block_bytes}; raise it, or "
                "lower cache_block_kb"
            )
        self.block_bytes = block_bytes
        self.limit_bytes = limit_bytes
        self._drawers = max(1, min(256, limit_bytes // (64 * block_bytes)))
        self._drawer_limit = limit_bytes // self._drawers
        self._folder = folder / f"blocks-{block_bytes}-{self._drawers}"
        self._works = True

    def get(self, file: str, number: int) -> bytes | None:
        """A block of a file; None if it is not here (any more), or damaged."""
        path = self._path(file, number)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if len(data) >= _HEADER.size:
            magic, size, crc32 = _HEADER.unpack_from(data)
            body = data[_HEADER.size :]
            if magic == _MAGIC and size == len(body) and zlib.crc32(body) == crc32:
                return body
        _remove(path)
        return None

    def put(self, file: str, number: int, data: bytes) -> None:
        """Keep a block, if there is room on the disk; else say so once and keep nothing from then on."""
        if not self._works:
            return
        path = self._path(file, number)
        unfinished = path.with_name(f"{os.getpid()}-{next(_numbers)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as handle:
                handle.write(_HEADER.pack(_MAGIC, len(data), zlib.crc32(data)))
                handle.write(data)
            unfinished.replace(path)
        except OSError as error:
            _remove(unfinished)
            self._works = False
            warnings.warn(
                f"cache {self._folder}: {error.strerror or error}; this process goes on without keeping more "
                "there",
                stacklevel=2,
            )
            return
        self._make_room(path.parent)

    def _path(self, file: str, number: int) -> Path:
        name = hashlib.blake2b(f"{file}\0{number}".encode("utf-8", "surrogateescape"), digest_size=20)
        drawer = int.from_bytes(name.digest()[:4], "little") % self._drawers
        return self._folder / f"{drawer:03}" / name.hexdigest()

    def _make_room(self, drawer: Path) -> None:
        blocks: list[_Block] = []
        for entry in os.scandir(drawer):
            try:
                facts = entry.stat()
            except OSError:
                continue
            if not entry.name.endswith(".part"):
                blocks.append(_Block(facts.st_mtime_ns, facts.st_size, entry.path))
            elif time.time() - facts.st_mtime > _STALE_S:
                _remove(Path(entry.path))
        total = sum(block.size for block in blocks)
        if total <= self._drawer_limit:
            return
        blocks.sort(key=lambda block: (block.used_ns, block.path))
        for block in blocks[:-1]:
            if total <= _FULL * self._drawer_limit:
                break
            _remove(Path(block.path))
            total -= block.size


@dataclass(frozen=True, slots=True)
class _Block:
    used_ns: int
    size: int
    path: str


def _remove(path: Path) -> None:
    """Another process may have been quicker, or the disk may be read-only."""
    try:
        path.unlink()
    except OSError:
        return


def read_through(
    cache: BlockCache,
    store: Store,
    name: str,
    *,
    version: str,
    total: int,
    start: int,
    size: int,
    fresh: bool = False,
) -> bytes:
    """Bytes of a file of `store`, from the cache where they are there; what is fetched is kept.

    Args:
        version: Changes when the file's bytes do.
        total: The file's size.
        fresh: Fetch anew what is there, since it proved to be wrong.
    """
    step, file = cache.block_bytes, f"{store.where(name)}\0{version}"
    first, last = start // step, max(start, start + size - 1) // step
    blocks: dict[int, bytes] = {}
    if not fresh:
        found = {number: cache.get(file, number) for number in range(first, last + 1)}
        blocks = {number: block for number, block in found.items() if block is not None}
    missing = [number for number in range(first, last + 1) if number not in blocks]
    store.counts.cache_hits += len(blocks)
    store.counts.cache_misses += len(missing)
    for begin, end in _runs(missing):
        data = store.read(name, begin * step, min(total, end * step) - begin * step)
        for number in range(begin, end):
            blocks[number] = data[(number - begin) * step : (number - begin + 1) * step]
            cache.put(file, number, blocks[number])
    whole = b"".join(blocks[number] for number in range(first, last + 1))
    return whole[start - first * step : start - first * step + size]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as half-open ranges."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
