"""Writing a language world: the same bytes however many processes work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from allsight.data.world.language.arranging import Arrangement, arrange
from allsight.data.world.language.export import (
    Written,
    make_folders,
    write_language_json,
    write_picture,
    write_shard,
    write_texts,
)
from allsight.data.world.language.options import Language
from allsight.data.world.language.split import SPLITS
from allsight.data.world.working import all_or_nothing, in_order

_CHUNK = 40
"""Pictures a process takes at a time."""


Item = TypeVar("Item")


@dataclass(frozen=True)
class _Pictures:
    config: Language.Config
    root: Path
    split: str
    first: int
    arrangements: tuple[Arrangement, ...]


@dataclass(frozen=True)
class _Shard:
    root: Path
    split: str
    number: int
    pictures: tuple[tuple[int, tuple[str, str]], ...]


def generate_language(
    out: Path | str,
    config: Language.Config | None = None,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Generate a language world and write it in the formats real data comes in (`export.py` lists them).

    Args:
        out: Folder to make; it may exist if it is empty.
        config: What to generate.
        workers: Processes; the bytes do not depend on it.
        on_progress: Called with (pictures done, pictures in all).
    Returns:
        The folder.
    Raises:
        ConfigError: `out` exists and is not empty; `workers` is below 1; there are not as many different
            pictures as are asked for.
    Example:
        >>> generate_language("data/language", Language.Config(train=500, val=100))  # doctest: +SKIP
    """
    config = config or Language.Config()
    out = Path(out)
    with all_or_nothing(out) as root:
        write_language(root, config, workers=workers, on_progress=on_progress)
    return out


def write_language(
    root: Path,
    config: Language.Config,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """`generate_language` into a folder that is there and empty."""
    make_folders(root)
    work = [job for split in SPLITS for job in _jobs(config, root, split)]
    pictures: dict[str, list[Written]] = {split: [] for split in SPLITS}
    total, done = sum(getattr(config, split) for split in SPLITS), 0
    for job, written in zip(work, in_order(_do, work, workers), strict=True):
        pictures[job.split] += written
        done += len(written)
        if on_progress is not None:
            on_progress(done, total)
    shards = [
        _Shard(root, split, number, tuple((p.index, p.pair_captions) for p in some))
        for split in SPLITS
        for number, some in enumerate(_parts(pictures[split], config.per_shard))
    ]
    for _ in in_order(_pack, shards, min(workers, len(shards))):
        pass
    counts = {split: write_texts(root, config, split, pictures[split]) for split in SPLITS}
    write_language_json(root, config, counts)


def _jobs(config: Language.Config, root: Path, split: str) -> Iterator[_Pictures]:
    for number, some in enumerate(_parts(arrange(config, split), _CHUNK)):
        yield _Pictures(config, root, split, number * _CHUNK, some)


def _parts(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    iterator = iter(items)
    while part := tuple(islice(iterator, size)):
        yield part


def _do(job: _Pictures) -> list[Written]:
    return [
        write_picture(job.config, job.root, job.split, job.first + number, things)
        for number, things in enumerate(job.arrangements)
    ]


def _pack(job: _Shard) -> None:
    write_shard(job.root, job.split, job.number, job.pictures)
