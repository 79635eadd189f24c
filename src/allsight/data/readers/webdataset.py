"""Shards named as WebDataset names them: the format `webdataset:PLACE`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from allsight.config import ConfigError, did_you_mean
from allsight.data.decode import MAX_PIXELS, LeastSize
from allsight.data.listings import SampleClasses
from allsight.data.readers.classes import ClassTable, parse_classes
from allsight.data.readers.found import Found, parts_of_splits
from allsight.data.readers.pictures import notes
from allsight.data.readers.tree import Tree
from allsight.data.shards.cache import BlockCache
from allsight.data.shards.catalogue import listed_splits
from allsight.data.shards.content import (
    KINDS,
    Meaning,
    check_parts,
    common_parts,
    parts_of,
    pictures_among,
    to_sample,
    understood,
)
from allsight.data.shards.members import spans
from allsight.data.shards.opening import find_shards, tars_of
from allsight.data.shards.remote import Patience
from allsight.data.shards.shelf import Shelf
from allsight.data.shards.stores import Counts
from allsight.types import DataError, Sample

# Of those that are looked at to learn what samples hold, some may be damaged.
_LOOKED_AT = 10


class WebDataset:
    """Reads tars in which files that agree up to the first dot make up a sample (`0012.jpg`, `0012.txt`).

    What the endings mean is listed in `allsight.data.shards.content`. Samples are called `SHARD/KEY`, such as
    `train-00003/0012`. Each sample is checked against the checksum in its shard's index.

    Args:
        path: A folder or URL with `SPLIT.shards.json`, or with tars `SPLIT-00000.tar` (disks only); or a tar
            or a pattern of tars as path or URL: `s3://bucket/{split}-{00000..00099}.tar`. Shards on servers
            need the indexes that `allsight data pack` and `allsight data index` write.
        split: Which split.
        kind: What each sample must have: a key of `content.KINDS`; `auto` takes what most of the first ten
            have (or what `SPLIT.shards.json` says).
        classes: Class names in order of their labels; else those of `classes.json` beside the shards.
        fps: Frames a second of videos that say nothing of it.
        frames: How many are taken of each video file (`.mp4`, ...), evenly spread.
        cache: Folder on this machine in which blocks of what comes from servers are kept; several processes
            and data sets may share it. Where it could hold too little of the data to save anything, only
            indexes are kept, and `notes` says so. Default the environment variable ALLSIGHT_CACHE, since
            this is a matter of the machine; without one nothing is kept.
        cache_mb: Most megabytes there, the same for all processes; default ALLSIGHT_CACHE_MB, else 10,000.
        cache_block_kb: What is fetched at once when there is a cache.
        ahead_mb: Most megabytes fetched from servers before they are asked for.
        index_mb: Most megabytes of indexes in memory.
        in_blocks: Samples are asked for in blocks of neighbours (`policy.block`), so that a cache pays
            however little of the data it holds.
        timeout_s: Longest silence of a server before it is asked again.
        tries: How often it is asked.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split or shard; damaged indexes; labels without class names; see
            `shards.opening.find_shards`. On reading: damaged bytes, files that contradict each other, a
            sample without what `kind` says.
        RemoteError: A server does not answer, however often it is asked.
    """

    reads_anywhere = True

    def __init__(
        self,
        path: Path | str,
        split: str,
        *,
        kind: str = "auto",
        classes: tuple[str, ...] = (),
        fps: float | None = None,
        frames: int = 16,
        cache: Path | None = None,
        cache_mb: int | None = None,
        cache_block_kb: int = 1024,
        ahead_mb: int = 64,
        index_mb: int = 64,
        in_blocks: bool = False,
        timeout_s: float = 30.0,
        tries: int = 6,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if kind not in KINDS and kind != "auto":
            raise ConfigError(f"kind {kind!r}: expected auto or one of the kinds{did_you_mean(kind, KINDS)}")
        cache, cache_mb = _cache_here(cache, cache_mb)
        found = find_shards(path, split, Patience(tries=tries, timeout_s=timeout_s))
        self.name = f"webdataset:{str(path).rstrip('/').rsplit('/', 1)[-1]}"
        self.split = split
        self._shelf = Shelf(
            found.store,
            found.catalogue,
            indexes=found.indexes,
            cache=BlockCache(cache, cache_mb * 2**20, cache_block_kb * 2**10) if cache else None,
            ahead_bytes=ahead_mb * 2**20,
            index_bytes=index_mb * 2**20,
            in_blocks=in_blocks,
        )
        table = self._class_table()
        self.classes = classes or (table.names if table else ())
        self._meaning = Meaning(self.classes, fps, frames, max_pixels)
        # What is stated needs no counting; a look at one sample tells of its other files.
        parts, strange = self._look(1 if kind != "auto" or found.catalogue.parts else _LOOKED_AT)
        self.parts = KINDS[kind] if kind != "auto" else found.catalogue.parts or parts
        """Inputs and targets that each sample has at least."""
        if "label" in self.parts and not self.classes:
            raise DataError(
                f"{path}: samples have classes, but nothing says their names; put classes.json beside the "
                "shards, or set classes=(name, ...)"
            )
        self.notes = (
            *found.notes,
            *self._notes(strange, cache_mb if cache else 0),
            *notes((found.catalogue.facts.get("left_out", 0), "broken samples left out when it was packed")),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        """Lists of shards; else tars that begin with several files of one sample."""
        if path.is_file():
            split = re.sub(r"-\d+$", "", path.stem)
            return Found(_BESIDE, (split,)) if path.suffix == ".tar" and _is_shard(path) else None
        listed = listed_splits(tree)
        if listed:
            return Found(f"lists of shards for {', '.join(listed)}", tuple(listed))
        tars = {split: tars_of(path, split) for split in parts_of_splits(tree)} if path.is_dir() else {}
        splits = tuple(split for split, found in tars.items() if found and _is_shard(found[0]))
        return Found(f"{_BESIDE}, for {', '.join(splits)}", splits) if splits else None

    def sample_classes(self) -> SampleClasses:
        """The class of each sample, if those have classes; reads all indexes."""
        return SampleClasses.one_at_most(self._shelf.labels())

    def __len__(self) -> int:
        return len(self._shelf)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, None)

    def reduced(self, index: int, least: LeastSize) -> Sample:
        """A sample whose picture may be decoded smaller, never below `least`."""
        return self._sample(index, least)

    def _sample(self, index: int, least: LeastSize | None) -> Sample:
        id, files = self._shelf.read(index)
        sample = to_sample(id, files, self._meaning, least)
        check_parts(sample, self.parts)
        return sample

    @cached_property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """The class of each sample, from the indexes of all shards.

        Raises:
            DataError: A sample has none that is a number.
        """
        labels = self._shelf.labels()
        if labels.min() < 0:
            index = int(np.argmin(labels))
            raise DataError(
                f"{self._shelf.name(index)}: no file .cls with a number, so its class is not in the index"
            )
        return labels

    @property
    def counts(self) -> Counts:
        """What reading has cost so far, in this process."""
        return self._shelf.counts

    @property
    def index_bytes(self) -> int:
        """Bytes of index entries in memory."""
        return self._shelf.index_bytes

    def ahead(self, indices: Sequence[int]) -> None:
        """Say which samples will be asked for next, so that those on servers are fetched side by side."""
        self._shelf.ahead(indices)

    def originals(self, index: int) -> dict[str, bytes]:
        """The files (ending -> bytes) of a sample's picture or frames."""
        return pictures_among(self._shelf.read(index)[1])

    def _notes(self, strange: list[str], cache_mb: int) -> Iterator[str]:
        if strange:
            yield f"files ending in .{', .'.join(strange)} are passed over"
        if cache_mb and not self._shelf.keeps_data:
            yield (
                f"a cache of {cache_mb} MB holds so little of these data that only indexes are kept in it "
                "and each sample is fetched alone; raise cache_mb, or lower cache_block_kb"
            )

    def _class_table(self) -> ClassTable | None:
        store = self._shelf.store
        try:
            return parse_classes(store.read("classes.json"), store.where("classes.json"))
        except FileNotFoundError:
            return None

    def _look(self, number: int) -> tuple[tuple[str, ...], list[str]]:
        """What the first readable samples have, and which of their files say nothing here.

        Damaged ones are refused when they are read; nothing is learnt from them unless there are no others.
        """
        looked: list[tuple[str, ...]] = []
        strange: dict[str, None] = {}
        last: DataError | None = None
        for index in range(min(_LOOKED_AT, len(self))):
            try:
                id, files = self._shelf.read(index)
                meant = understood(files, id)
                looked.append(parts_of(files, files.get(meant.get("json", "")), id))
            except DataError as error:
                last = error
                continue
            strange |= dict.fromkeys(ending for ending in files if ending not in meant.values())
            if len(looked) == number:
                break
        if not looked and last is not None and len(self) > _LOOKED_AT:
            raise DataError(
                f"none of the first {_LOOKED_AT} samples can be read, so what samples hold is unknown: {last}"
            ) from last
        return common_parts(looked), list(strange)


_BESIDE = "tars in which the files of a sample lie side by side"


def _is_shard(tar: Path) -> bool:
    """Whether the first sample of a tar has several files, one of them of a known meaning."""
    with tar.open("rb") as file:
        try:
            data = mmap(file.fileno(), 0, access=ACCESS_READ)
        except ValueError:
            return False
        with data:
            try:
                first = next(spans(data, str(tar)), None)
            except DataError:
                return False
    endings = [member.ending for member in first.members] if first is not None else []
    try:
        return len(endings) > 1 and bool(understood(endings, ""))
    except DataError:
        # Pictures that only look like files of one sample (`cat.a.jpg`, `cat.b.jpg`).
        return False


def _cache_here(folder: Path | None, limit_mb: int | None) -> tuple[Path | None, int]:
    """Where this machine keeps what comes from servers, and how much of it."""
    text = os.environ.get("ALLSIGHT_CACHE", "")
    limit = os.environ.get("ALLSIGHT_CACHE_MB", "10000") if limit_mb is None else str(limit_mb)
    if not limit.isdecimal():
        raise ConfigError(
            f"environment variable ALLSIGHT_CACHE_MB: expected a number of megabytes, got {limit!r}"
        )
    return Path(folder) if folder else Path(text).expanduser() if text else None, int(limit)
