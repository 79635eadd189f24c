"""One look at each sample, in several processes: whether it can be read, and what a survey counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from allsight.data.readers import NamedReader
from allsight.data.side_by_side import Progress, each
from allsight.types import (
    BEVMap,
    Boxes3D,
    DataError,
    Image,
    LabelMap,
    Objects,
    Panoptic,
    Rig,
    Sample,
    Text,
    Video,
)

_CHUNK = 32


@dataclass(frozen=True)
class Look:
    """What was seen of a sample.

    Args:
        index: Its place in the split.
        id: Of the sample; `#INDEX` where it failed without saying so.
        fault: Why it cannot be used; empty if it can, and then nothing else is known.
        hw_px: Size of its picture; of a rig, of the first camera's.
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
    rig = sample.inputs.get("rig")
    if isinstance(rig, Rig) and rig.images:
        image = rig.images[0]
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
    on_progress: Progress | None = None,
) -> Iterator[Look]:
    """Looks at samples, in the order of `indices`.

    Args:
        processes: 1 reads in this process.
        on_progress: Called with (samples looked at, all) after each chunk.

    Raises:
        ProcessDied: One was killed while it read, or crashed in a decoder.
    """
    chunks = [indices[at : at + _CHUNK] for at in range(0, len(indices), _CHUNK)]
    done = 0
    for looks in each(
        _look_at_chunk,
        chunks,
        processes,
        given=(reader,),
        called=lambda chunk: (
            f"samples {chunk[0]} to {chunk[-1] + 1} of {reader.name}, split {reader.split!r},"
        ),
    ):
        yield from looks
        done += len(looks)
        if on_progress is not None:
            on_progress(done, len(indices))


def _look_at_chunk(reader: NamedReader, indices: Sequence[int]) -> list[Look]:
    return [look_at(reader, index) for index in indices]


def _hash(part: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(part, Text):
        digest.update(part.string.encode("utf-8", "surrogatepass"))
    for image in part.images if isinstance(part, Rig) else ():
        digest.update(_hash(image).encode())
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
        elif isinstance(target, Boxes3D):
            found["boxes"] = dict(Counter(target.labels.tolist()))
        elif isinstance(target, BEVMap):
            found["cells"] = dict(enumerate(target.masks.sum((1, 2)).tolist()))
        elif isinstance(target, Panoptic):
            found["segments"] = dict(Counter(target.labels.tolist()))
        elif isinstance(target, LabelMap):
            values, counts = target.pixels[target.pixels != target.ignore].unique(return_counts=True)
            found["pixels"] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return found
