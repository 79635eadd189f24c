"""Writing shards from any data set that a reader can open: in parallel, resumable, the same bytes always."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from allsight.data.order import Shuffles
from allsight.data.shards.catalogue import index_name
from allsight.data.shards.content import to_files
from allsight.data.shards.index import ENTRY, Index, write_whole
from allsight.data.shards.members import BLOCK
from allsight.data.shards.tar_writing import TAR_END, padded_size, tar_members
from allsight.types import DataError, Sample

_MEASURED = 64


@dataclass(frozen=True)
class Job:
    """What decides the bytes of a pack, beside the data themselves; plain values.

    Args:
        data: The source, `format:path`.
        split: Which split of it.
        samples: How many it has.
        per_shard: How many go into one shard.
        shuffle: Seed of the order in which they are written; None keeps the source's.
        leave_out_broken: Whether samples that cannot be read are left out, or an error.
        options: Of the source's reader.
        sizes_crc32: Checksum of what was measured to choose `per_shard`; another source has another one.
    """

    data: str
    split: str
    samples: int
    per_shard: int
    shuffle: int | None
    leave_out_broken: bool
    options: Mapping[str, Any]
    sizes_crc32: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.per_shard)

    def name(self, shard: int) -> str:
        """Name of a shard's tar."""
        return f"{self.split}-{shard:0{max(5, len(str(self.shards - 1)))}}.tar"

    def indices(self, shard: int) -> list[int]:
        """Samples of the source that go into a shard, in order."""
        places = range(shard * self.per_shard, min(self.samples, (shard + 1) * self.per_shard))
        if self.shuffle is None:
            return list(places)
        offsets = np.arange(places.start, places.stop, dtype=np.int64)
        return Shuffles(self.shuffle).permutation(f"pack {self.split}", self.samples, 0, offsets).tolist()

    def facts(self) -> dict[str, Any]:
        """The job as plain values, as JSON gives them back."""
        return {**asdict(self), "options": {name: _plain(value) for name, value in self.options.items()}}


@dataclass(frozen=True)
class Shard:
    """A shard that was written: its index, and the samples that were left out with the reason."""

    index: Index
    left_out: tuple[str, ...] = ()


def measured(reader: Any, shard_bytes: int, leave_out_broken: bool) -> tuple[int, int]:
    """How many samples make up about `shard_bytes`, judged by some of them; and a checksum of those.

    Raises:
        DataError: One of them cannot be read (or none of them, if broken ones are left out).
    """
    sizes, checksum, last = [], 0, None
    for index in np.unique(np.linspace(0, len(reader) - 1, _MEASURED).astype(np.int64)).tolist():
        try:
            _, files = files_of(reader, index)
        except DataError as error:
            if not leave_out_broken:
                raise _refused(error) from error
            last = error
            continue
        sizes.append(sum(BLOCK + padded_size(len(data)) for data in files.values()))
        for data in files.values():
            checksum = zlib.crc32(data, checksum)
    if not sizes:
        raise last or DataError("no samples")
    return max(1, int(shard_bytes * len(sizes) // sum(sizes))), checksum


def files_of(reader: Any, index: int) -> tuple[Sample, dict[str, bytes]]:
    """A sample of a reader, and the files that it becomes: its own pictures' bytes if the reader has them."""
    sample = reader[index]
    originals = reader.originals(index) if has_originals(reader) else {}
    return sample, to_files(sample, originals)


def has_originals(reader: Any) -> bool:
    """Whether a reader can give the bytes of its pictures, not just their pixels."""
    return hasattr(reader, "originals")


def write_shard(job: Job, reader: Any, shard: int, out: Path) -> Shard:
    """Write a shard and, once that is whole on disk, its index.

    Raises:
        DataError: A sample cannot be read, and the job does not leave those out; none is left.
        OSError: The disk is full, or not writable; nothing of the shard is left.
    """
    path = out / job.name(shard)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            written = _written(file, job, reader, shard, path)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        write_whole(out / index_name(path.name), written.index.pack())
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def _written(file: BinaryIO, job: Job, reader: Any, shard: int, path: Path) -> Shard:
    rows: list[tuple[int, int, int, int]] = []
    left_out: list[str] = []
    keys: set[str] = set()
    offset, tar_crc32 = 0, 0
    for index in job.indices(shard):
        try:
            sample, files = files_of(reader, index)
        except DataError as error:
            if not job.leave_out_broken:
                raise _refused(error) from error
            left_out.append(str(error))
            continue
        key = _unique(key_of(sample.id, job.split), keys)
        span = tar_members(key, files)
        label = sample.targets.get("label")
        label = label if type(label) is int and 0 <= label < 2**31 else -1
        rows.append((offset, len(span), zlib.crc32(span), label))
        file.write(span)
        offset += len(span)
        tar_crc32 = zlib.crc32(span, tar_crc32)
    if not rows:
        raise DataError(
            f"{path.name}: none of its {len(left_out)} samples can be read, the last: {left_out[-1]}"
        )
    file.write(TAR_END)
    entries = np.array(rows, dtype=ENTRY)
    index_ = Index.of(entries, offset + len(TAR_END), zlib.crc32(TAR_END, tar_crc32))
    return Shard(index_, tuple(left_out))


def key_of(id: str, split: str) -> str:
    """The key of a sample in a tar, from its id `SPLIT/cat/0012.jpg`: "cat/0012". Dots, which would end it,
    and what may not stand in a tar's names become underscores."""
    stem, dot, ending = id.removeprefix(f"{split}/").rpartition(".")
    name = stem if dot and "/" not in ending else id.removeprefix(f"{split}/")
    letters = [letter if letter.isprintable() and letter not in '.:\\#"' else "_" for letter in name]
    parts = [part for part in "".join(letters).split("/") if part]
    return "/".join(parts) or "_"


def _unique(key: str, keys: set[str]) -> str:
    number, name = 1, key
    while name in keys:
        number += 1
        name = f"{key}_{number}"
    keys.add(name)
    return name


def _refused(error: DataError) -> DataError:
    return DataError(f"{error}; mend or remove it, or use --leave-out-broken", error.sample_id)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
