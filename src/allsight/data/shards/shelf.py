"""Random access to the samples of many shards, wherever they lie."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from allsight.config import ConfigError
from allsight.data.shards.cache import BlockCache, read_through
from allsight.data.shards.catalogue import Catalogue, index_name
from allsight.data.shards.index import Index
from allsight.data.shards.indexes import KeptIndexes
from allsight.data.shards.members import contents
from allsight.data.shards.readahead import ReadAhead
from allsight.data.shards.scale import worth_keeping
from allsight.data.shards.stores import Counts, FolderStore, RemoteError, Store
from allsight.types import DataError


class Shelf:
    """The samples of the shards of a catalogue, by number.

    In memory are the catalogue, and the indexes used last: 20 bytes a sample. Picklable.

    Args:
        store: Where the shards lie.
        catalogue: Which they are.
        indexes: Those that have no file, by number of their shard.
        cache: Keeps blocks of what is fetched on this machine: of indexes, and of tars unless so small a part
            of them fits that fetching each sample alone is less.
        ahead_bytes: Most bytes that are read before they are asked for (see `ahead`).
        index_bytes: Most bytes of indexes kept; that of one shard is kept in any case.
        in_blocks: Neighbours are asked for together, so the cache keeps tars however little of them fits.
    """

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        *,
        indexes: Mapping[int, Index] | None = None,
        cache: BlockCache | None = None,
        ahead_bytes: int = 64 * 2**20,
        index_bytes: int = 64 * 2**20,
        in_blocks: bool = False,
    ) -> None:
        self.store, self.catalogue = store, catalogue
        self._cache = cache
        self.keeps_data = cache is not None and (in_blocks or self._is_worth_keeping(cache))
        """Whether blocks of the tars are kept in the cache, too, and not only indexes."""
        self._given = {shard: index.entries for shard, index in (indexes or {}).items()}
        self._ends = np.cumsum(catalogue.samples)
        self._indexes = KeptIndexes(self._load_index, index_bytes)
        self._ahead = ReadAhead(self._read, ahead_bytes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def counts(self) -> Counts:
        """What reading has cost so far."""
        return self.store.counts

    @property
    def index_bytes(self) -> int:
        """Bytes of index entries in memory."""
        return self._indexes.kept_bytes + sum(entries.nbytes for entries in self._given.values())

    def name(self, index: int) -> str:
        """A name that needs no reading: the shard, and the number in it."""
        shard, number = self._place(index)
        return f"{_stem(self.catalogue.names[shard])}/#{number}"

    def read(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Name of a sample (shard and key), and its files by ending.

        Raises:
            DataError: Its bytes are not those that were indexed, or its index is damaged.
            RemoteError: A server does not answer.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        data = self._ahead.take(index)
        tar = self.catalogue.names[self._place(index)[0]]
        try:
            key, files = contents(data, tar)
        except DataError as error:
            name = self.name(index)
            raise DataError(f"{name}: {error}", name) from error
        return f"{_stem(tar)}/{key}", files

    def ahead(self, indices: Sequence[int]) -> None:
        """Begin to fetch what will be asked for next, several at a time. A folder is read when asked."""
        if isinstance(self.store, FolderStore):
            return
        shards = np.searchsorted(self._ends, np.asarray(indices, dtype=np.int64), side="right")
        # The true sizes stand in the indexes, which may have to be fetched too.
        sizes = self.catalogue.tar_bytes[shards] // self.catalogue.samples[shards]
        self._ahead.announce(list(indices), sizes.tolist())

    def labels(self) -> Int64[np.ndarray, " n"]:
        """The class of each sample as its index says it, -1 where it does not. Reads all indexes."""
        shards = range(len(self.catalogue.names))
        return np.concatenate([self._indexes[shard]["label"] for shard in shards]).astype(np.int64)

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _read(self, index: int) -> bytes:
        """The bytes of a sample, checked; where they do not fit, they are fetched a second time."""
        shard, number = self._place(index)
        tar = self.catalogue.names[shard]
        offset, size, crc32, _ = self._indexes[shard][number].tolist()
        data = b""
        for fresh in (False, True):
            try:
                if self.keeps_data:
                    header = self.catalogue.header(shard)
                    data = self._bytes(tar, f"{header.tar_crc32:08x}", header.tar_bytes, offset, size, fresh)
                else:
                    data = self.store.read(tar, offset, size)
            except FileNotFoundError as error:
                raise ConfigError(
                    f"{self.store.where(tar)}: no such shard, though the list of shards has it; bring it back"
                ) from error
            except RemoteError:
                raise
            except OSError as error:
                name = self.name(index)
                raise DataError(f"{name}: {self.store.where(tar)} cannot be read: {error}", name) from error
            if len(data) == size and zlib.crc32(data) == crc32:
                return data
        name = self.name(index)
        found = "their checksum differs" if len(data) == size else f"{len(data)} instead of {size}"
        raise DataError(
            f"{name}: {self.store.where(tar)} holds other bytes than its index says ({found}); "
            "see `allsight data verify`",
            name,
        )

    def _is_worth_keeping(self, cache: BlockCache) -> bool:
        tars, samples = float(self.catalogue.tar_bytes.sum()), float(self.catalogue.samples.sum())
        return worth_keeping(cache.limit_bytes, tars, tars / samples, cache.block_bytes)

    def _load_index(self, shard: int) -> np.ndarray:
        if shard in self._given:
            return self._given[shard]
        name, header = index_name(self.catalogue.names[shard]), self.catalogue.header(shard)
        where, version = self.store.where(name), f"{header.entries_crc32:08x}"
        for fresh in (False, True):
            try:
                data = self._bytes(name, version, header.file_bytes, 0, header.file_bytes, fresh)
                index = Index.unpack(data, where)
            except FileNotFoundError as error:
                raise ConfigError(
                    f"{where}: no such index; bring it back, or run `allsight data index`"
                ) from error
            except DataError:
                if fresh:
                    raise
                continue
            if index.header != header:
                raise DataError(
                    f"{where}: belongs to another tar than the list of shards says; run `allsight data index`"
                )
            return index.entries
        raise AssertionError

    def _bytes(self, name: str, version: str, total: int, start: int, size: int, fresh: bool) -> bytes:
        if self._cache is None:
            return self.store.read(name, start, size)
        return read_through(
            self._cache,
            self.store,
            name,
            version=version,
            total=total,
            start=start,
            size=size,
            fresh=fresh,
        )


def _stem(tar: str) -> str:
    """A tar's name without folders and ending."""
    return tar[tar.rfind("/") + 1 :].removesuffix(".tar")
