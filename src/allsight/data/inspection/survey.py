"""What a data set holds, from a look at some of its samples."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from allsight.data.inspection.looks import Look, look_at_all
from allsight.data.readers import NamedReader
from allsight.data.side_by_side import Progress
from allsight.types import class_name

_SIDES_PX = (32, 64, 128, 256, 512, 1024, 2048)
"""Bounds of the histogram of longer sides."""


@dataclass(frozen=True)
class SplitSurvey:
    """One split.

    Args:
        samples: How many it has.
        looked_at: How many of them, evenly spread, were read for what follows.
        counted: What is counted (`samples`, `objects`, `pixels`, `segments`) -> class -> how often; all
            classes, those that do not occur too.
        sizes: Range of the longer side in pixels -> pictures.
        size_wh_px: Width and height of the median picture, by area.
        unusable: Id -> why it cannot be read.
        duplicates: Groups of ids of samples that are equal in all inputs.
        notes: What the reader passed over.
    """

    samples: int
    looked_at: int
    counted: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]
    size_wh_px: tuple[int, int] | None
    unusable: Mapping[str, str]
    duplicates: Sequence[Sequence[str]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Survey:
    """A data set.

    Args:
        name: Of its readers, `format:folder`.
        splits: Split -> what it holds.
        overlaps: Pictures found in two splits: `TRAIN, VAL` -> pairs of ids.
    """

    name: str
    splits: Mapping[str, SplitSurvey]
    overlaps: Mapping[str, Sequence[tuple[str, str]]]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def survey(
    readers: Sequence[NamedReader],
    *,
    limit: int = 1000,
    processes: int = 1,
    on_progress: Progress | None = None,
) -> Survey:
    """Look at the splits of one data set.

    Args:
        readers: One for each split.
        limit: At most so many samples of each split are read, evenly spread; 0 reads all.
        processes, on_progress: See `look_at_all`.

    Raises:
        ProcessDied: As `look_at_all`.
    """
    looks = {
        reader.split: list(
            look_at_all(reader, _spread(len(reader), limit), processes=processes, on_progress=on_progress)
        )
        for reader in readers
    }
    overlaps = {}
    for one, other in combinations(looks, 2):
        shared = _shared(looks[one], looks[other])
        if shared:
            overlaps[f"{one}, {other}"] = shared
    splits = {reader.split: _split(reader, looks[reader.split]) for reader in readers}
    return Survey(readers[0].name, splits, overlaps)


def _spread(count: int, limit: int) -> list[int]:
    if not limit or count <= limit:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(int).tolist()


def _split(reader: NamedReader, looks: Sequence[Look]) -> SplitSurvey:
    good = [look for look in looks if not look.fault]
    sizes = [look.hw_px for look in good if look.hw_px is not None]
    groups: dict[str, list[str]] = {}
    for look in good:
        groups.setdefault(look.content, []).append(look.id)
    return SplitSurvey(
        samples=len(reader),
        looked_at=len(looks),
        counted=_counted(good, reader.classes),
        sizes=_histogram([max(hw) for hw in sizes]),
        size_wh_px=_median(sizes),
        unusable={look.id: look.fault for look in looks if look.fault},
        duplicates=[ids for ids in groups.values() if len(ids) > 1],
        notes=reader.notes,
    )


def _counted(looks: Sequence[Look], classes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    totals: dict[str, Counter[int]] = {}
    for look in looks:
        for what, counts in look.counts.items():
            totals.setdefault(what, Counter()).update(counts)
    return {
        what: {class_name(n, classes): count[n] for n in range(max(len(classes), max(count, default=-1) + 1))}
        for what, count in totals.items()
    }


def _histogram(sides_px: Sequence[int]) -> dict[str, int]:
    places = np.searchsorted(_SIDES_PX, sides_px)
    names = [f"up to {_SIDES_PX[0]} px"]
    names += [f"{low + 1} to {high} px" for low, high in pairwise(_SIDES_PX)]
    names.append(f"over {_SIDES_PX[-1]} px")
    counts = Counter(places.tolist())
    return {name: counts[place] for place, name in enumerate(names) if counts[place]}


def _median(sizes_hw: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    if not sizes_hw:
        return None
    area = statistics.median_low(height * width for height, width in sizes_hw)
    height, width = next(hw for hw in sizes_hw if hw[0] * hw[1] == area)
    return width, height


def _shared(one: Sequence[Look], other: Sequence[Look]) -> list[tuple[str, str]]:
    first = {look.picture or look.content: look.id for look in one if not look.fault}
    keys = [(look.picture or look.content, look.id) for look in other if not look.fault]
    return [(first[key], id) for key, id in keys if key in first]
