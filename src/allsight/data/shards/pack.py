"""`allsight data pack`: from a reader to shards, whatever happens on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from allsight.config import ConfigError
from allsight.data.locks import take
from allsight.data.readers import NamedReader, open_reader
from allsight.data.shards.catalogue import Catalogue, catalogue_name, index_name
from allsight.data.shards.checking import tar_crc32
from allsight.data.shards.content import parts_of
from allsight.data.shards.index import Index, write_whole
from allsight.data.shards.packing import Job, Shard, files_of, has_originals, measured, write_shard
from allsight.data.side_by_side import Progress, each
from allsight.types import DataError


@dataclass(frozen=True)
class Packed:
    """What a pack came to.

    Args:
        catalogue: The shards.
        kept: How many of them were there already, whole.
        left_out: Samples left out.
        reasons: Of those left out just now: what is wrong with each.
        notes: What people should know.
    """

    catalogue: Catalogue
    kept: int
    left_out: int
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def pack(
    data: str,
    out: Path,
    *,
    root: Path | str | None = None,
    split: str = "train",
    shard_bytes: int = 256 * 2**20,
    processes: int = 1,
    shuffle: int | None = None,
    leave_out_broken: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Write one split of a data set as shards with indexes, `SPLIT.shards.json` and `classes.json`.

    The bytes do not depend on `processes`. Killed at any moment, it leaves whole shards and perhaps files
    that end in `.part`; called again, it keeps the whole ones and goes on. Pictures are copied as they are
    where the reader has their files, else they are written as PNG.

    Args:
        data: `format:path`, as for `open_reader`; also `root`, `split` and `options`.
        out: Folder, made if needed; may hold other splits.
        shard_bytes: About how large a shard becomes: the number of samples in it is chosen by measuring some.
        shuffle: Seed of a random order; None keeps the source's. Shards of a shuffled pack can be read one
            after another.
        leave_out_broken: Leave out samples that cannot be read, instead of stopping.
        progress: Called after each shard.

    Raises:
        ConfigError: `out` has this split from another pack; other class names than another split there.
        DataError: The source cannot be opened; a sample cannot be read or written.
        OSError: The disk is full. Nothing half-written has the name of a shard.
        ProcessDied: A process was killed.
    """
    given = {name: _tuples(value) for name, value in (options or {}).items()}
    reader = open_reader(data, root, split, **given)
    per_shard, checksum = measured(reader, shard_bytes, leave_out_broken)
    job = Job(data, split, len(reader), per_shard, shuffle, leave_out_broken, given, checksum)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        return _pack(job, reader, out, root, processes, progress)


def _pack(
    job: Job,
    reader: NamedReader,
    out: Path,
    root: Path | str | None,
    processes: int,
    progress: Progress | None,
) -> Packed:
    split = job.split
    _agree(out / f"{split}.packing.json", out / catalogue_name(split), job)
    _agree_on_classes(out / "classes.json", reader)
    for unfinished in out.glob(f"{split}-*.part"):
        unfinished.unlink(missing_ok=True)
    given = json.dumps(job.facts()), None if root is None else str(root), str(out)
    headers, reasons, kept = [], [], 0
    shards = each(_shard, range(job.shards), processes, given=given, called=job.name)
    for done, (was_there, written) in enumerate(shards, 1):
        headers.append(written.index.header)
        reasons += written.left_out
        kept += was_there
        if progress is not None:
            progress(done, job.shards)
    left_out = job.samples - sum(header.samples for header in headers)
    names = [job.name(shard) for shard in range(job.shards)]
    parts = _parts(reader)
    catalogue = Catalogue.of(names, headers, parts, job=job.facts(), left_out=left_out)
    write_whole(out / catalogue_name(split), catalogue.pack())
    (out / f"{split}.packing.json").unlink(missing_ok=True)
    return Packed(catalogue, kept, left_out, tuple(reasons), (*reader.notes, *_how_copied(reader, parts)))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second pack out of the folder. The system lets go when the process ends, however it does."""
    handle = os.open(out, os.O_RDONLY)
    try:
        take(handle, f"{out}: another pack is writing into it; wait for it, or stop it")
        yield
    finally:
        os.close(handle)


def _shard(job_text: str, root: str | None, out: str, shard: int) -> tuple[bool, Shard]:
    """Write a shard, unless it is there already; whether it was."""
    job = Job(**json.loads(job_text))
    path = Path(out) / job.name(shard)
    there = _whole(path)
    if there is not None:
        return True, Shard(there)
    reader = _opened(job.data, root, job.split, json.dumps(job.options))
    return False, write_shard(job, reader, shard, Path(out))


@lru_cache(maxsize=1)
def _opened(data: str, root: str | None, split: str, options: str) -> NamedReader:
    """The reader, once for each process."""
    return open_reader(data, root, split, **{name: _tuples(v) for name, v in json.loads(options).items()})


def _whole(path: Path) -> Index | None:
    """The index of a shard that is there with all its bytes."""
    try:
        index = Index.unpack(path.with_name(index_name(path.name)).read_bytes(), str(path))
        return index if tar_crc32(path) == (index.header.tar_bytes, index.header.tar_crc32) else None
    except (OSError, DataError):
        return None


def _agree(begun: Path, finished: Path, job: Job) -> None:
    """Note what is being packed; refuse to mix it with another pack."""
    for path in (begun, finished):
        try:
            tree = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError:
            tree = {}
        old = tree if path == begun else tree.get("facts", {}).get("job")
        now = json.loads(json.dumps(job.facts()))
        if old == now:
            continue
        differing = [name for name in now if not isinstance(old, dict) or old.get(name) != now[name]]
        said = (
            ", ".join(f"{n} was {old.get(n)!r}, is {now[n]!r}" for n in differing[:2])
            if old
            else "not packed"
        )
        raise ConfigError(
            f"{path}: holds the split {job.split!r} of another pack ({said}); pack into another folder, or "
            f"remove {job.split}-*.tar*, {begun.name} and {finished.name}"
        )
    write_whole(begun, json.dumps(job.facts(), sort_keys=True).encode())


def _agree_on_classes(path: Path, reader: NamedReader) -> None:
    if not reader.classes:
        return
    text = json.dumps(list(reader.classes), ensure_ascii=False).encode()
    try:
        old = path.read_bytes()
    except FileNotFoundError:
        write_whole(path, text)
        return
    if old != text:
        raise ConfigError(f"{path}: other class names than {reader.name} has; pack into another folder")


def _parts(reader: NamedReader) -> tuple[str, ...]:
    """What all samples have, as far as the first, the middle and the last one tell."""
    found: list[tuple[str, ...]] = []
    for index in sorted({0, len(reader) // 2, len(reader) - 1}):
        try:
            _, files = files_of(reader, index)
        except DataError:
            continue
        found.append(parts_of(tuple(files), files.get("json")))
    return tuple(part for part in (found[0] if found else ()) if all(part in other for other in found))


def _how_copied(reader: NamedReader, parts: tuple[str, ...]) -> Iterable[str]:
    if {"image", "video"} & set(parts) and not has_originals(reader):
        yield f"{reader.name.partition(':')[0]} gives pixels, not files: pictures were written as PNG"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, tuple | list) else value
