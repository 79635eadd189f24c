"""One look at each sample, in several processes: whether it can be read, and what a survey counts."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import torch

from allsight.data.readers import NamedReader
from allsight.types import DataError, Image, LabelMap, Objects, Panoptic, Sample, Text, Video

_CHUNK = 32
_CHUNKS_AHEAD = 4
"""So many chunks a process are asked for ahead, so that none waits and memory stays bounded."""


@dataclass(frozen=True)
class Look:
    """What was seen of a sample.

    Args:
        index: Its place in the split.
        id: Of the sample; `#INDEX` where it failed without saying so.
        fault: Why it cannot be used; empty if it can, and then nothing else is known.
        hw_px: Size of its picture.
        picture: Hash of the picture's pixels; equal for the same picture in two files.
        content: Hash of all inputs.
        counts: What is counted (`objects`, `pixels`, ...) -> class index -> how often.
    """

    index: int
    id: str
    fault: str = ""
    hw_px: tuple[int, int] | None = None
    picture: str = ""
    content: str = ""
    counts: dict[str, dict[int, int]] = field(default_factory=dict)


def look_at(reader: NamedReader, index: int) -> Look:
    """Read a sample. A DataError becomes its fault; anything else is a bug, and is raised."""
    try:
        sample = reader[index]
    except DataError as error:
        return Look(index, error.sample_id or f"#{index}", str(error))
    image = sample.inputs.get("image")
    parts = [_hash(part) for part in sample.inputs.values()]
    return Look(
        index,
        sample.id,
        hw_px=image.hw_px if isinstance(image, Image) else None,
        picture=_hash(image) if isinstance(image, Image) else "",
        content=hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest(),
        counts=_counts(sample),
    )


def look_at_all(
    reader: NamedReader,
    indices: Sequence[int],
    *,
    processes: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Look]:
    """Looks at samples, in the order of `indices`.

    Args:
        processes: 1 reads in this process.
        on_progress: Called with (samples looked at, all) after each chunk.

    Raises:
        DataError: A process died while it read (a crash in a decoder, or the memory ran out).
    """
    chunks = [indices[at : at + _CHUNK] for at in range(0, len(indices), _CHUNK)]
    done = 0
    for looks in _in_processes(reader, chunks, processes) if processes > 1 else _here(reader, chunks):
        yield from looks
        done += len(looks)
        if on_progress is not None:
            on_progress(done, len(indices))


def _here(reader: NamedReader, chunks: Sequence[Sequence[int]]) -> Iterator[list[Look]]:
    for chunk in chunks:
        yield [look_at(reader, index) for index in chunk]


def _in_processes(
    reader: NamedReader, chunks: Sequence[Sequence[int]], processes: int
) -> Iterator[list[Look]]:
    # Started afresh, since a copy of a process with threads may hang; the server does the imports once.
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context: Any = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    pending: deque[tuple[Sequence[int], Future[list[Look]]]] = deque()
    rest = iter(chunks)
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(reader,)) as pool:
        while True:
            while len(pending) < processes * _CHUNKS_AHEAD and (chunk := next(rest, None)) is not None:
                pending.append((chunk, pool.submit(_look_at_chunk, chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            try:
                looks = future.result()
            except BrokenProcessPool:
                raise DataError(
                    f"{reader.name}: a process died while samples {chunk[0]} to {chunk[-1] + 1} of split "
                    f"{reader.split!r} (or soon after) were read; try --processes 1, or free memory"
                ) from None
            yield looks


_reader: Any = None
"""The reader of a process that looks."""


def _begin(reader: NamedReader) -> None:
    global _reader
    torch.set_num_threads(1)
    _reader = reader


def _look_at_chunk(indices: Sequence[int]) -> list[Look]:
    return [look_at(_reader, index) for index in indices]


def _hash(part: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(part, Text):
        digest.update(part.string.encode("utf-8", "surrogatepass"))
    pixels = part.pixels if isinstance(part, Image) else part.frames if isinstance(part, Video) else None
    if pixels is not None:
        digest.update(str(tuple(pixels.shape)).encode())
        digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _counts(sample: Sample) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for name, target in sample.targets.items():
        if name == "label" and isinstance(target, int):
            found["samples"] = {target: 1}
        elif isinstance(target, Objects):
            found["objects"] = dict(Counter(target.labels.tolist()))
        elif isinstance(target, Panoptic):
            found["segments"] = dict(Counter(target.labels.tolist()))
        elif isinstance(target, LabelMap):
            values, counts = target.pixels[target.pixels != target.ignore].unique(return_counts=True)
            found["pixels"] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return found
