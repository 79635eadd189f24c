"""What a reader can tell of all its samples without reading any: their classes, sizes, lengths.

Sampling policies are decided from it before the first sample is read. All of it is optional: a reader offers
what its data set lists.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from allsight.config import ConfigError


@dataclass(frozen=True)
class SampleClasses:
    """Which classes occur in each sample: those of sample i are `labels[offsets[i] : offsets[i + 1]]`.

    A class may be listed several times for one sample (a picture with three cats).
    """

    labels: Int64[np.ndarray, " m"]
    offsets: Int64[np.ndarray, " n_and_1"]

    @classmethod
    def one_each(cls, labels: Int64[np.ndarray, " n"]) -> SampleClasses:
        """Samples with exactly one class each."""
        return cls(labels, np.arange(len(labels) + 1, dtype=np.int64))

    @classmethod
    def one_at_most(cls, labels: Int64[np.ndarray, " n"]) -> SampleClasses:
        """Samples with one class or, where the label is -1, none."""
        has_one = labels >= 0
        return cls(labels[has_one], np.concatenate([[0], np.cumsum(has_one, dtype=np.int64)]))

    @classmethod
    def of_sets(cls, labels: Sequence[Collection[int]]) -> SampleClasses:
        """The classes of each sample as a collection."""
        offsets = np.concatenate([[0], np.cumsum([len(some) for some in labels], dtype=np.int64)])
        return cls(np.array([label for some in labels for label in some], dtype=np.int64), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pairs(self) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
        """(samples, classes): each class of each sample once, ordered by sample."""
        counts = np.diff(self.offsets)
        samples = np.repeat(np.arange(len(self), dtype=np.int64), counts)
        if (counts <= 1).all():
            return samples, self.labels
        width = int(self.labels.max(initial=0)) + 1
        pairs = np.sort(samples * width + self.labels)
        return np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], width)


@runtime_checkable
class ListsClasses(Protocol):
    """A reader that knows the classes of its samples."""

    def sample_classes(self) -> SampleClasses: ...


@runtime_checkable
class ListsSizes(Protocol):
    """A reader that knows the sizes of its pictures, [height, width] of each."""

    @property
    def sizes_hw_px(self) -> Int64[np.ndarray, "n 2"]: ...


@runtime_checkable
class ListsLengths(Protocol):
    """A reader that knows the lengths of its samples: words, tokens, bytes or frames."""

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]: ...


def classes_listed(reader: Any, *, setting: str, instead: str) -> SampleClasses:
    """The classes of a reader's samples, for a setting that needs them.

    Args:
        setting: Its path and value, for errors.
        instead: What else to do, for errors.
    Raises:
        ConfigError: The reader does not know them without reading, or no sample has one.
    """
    if not isinstance(reader, ListsClasses):
        raise ConfigError(
            f"{setting} needs the classes of all samples, which {name_of(reader)} cannot tell without "
            "reading them; take data that lists them (imagefolder, coco), give the reader a method "
            f"sample_classes(), or {instead}"
        )
    classes = reader.sample_classes()
    if not len(classes.labels):
        raise ConfigError(
            f"{setting} needs the classes of all samples, and in {name_of(reader)} none has one; {instead}"
        )
    return classes


def name_of(reader: Any) -> str:
    """What to call a reader in an error."""
    return str(getattr(reader, "name", "") or type(reader).__name__)
