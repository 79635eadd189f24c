"""A part of a data set with as many samples of each class as asked for: few labels, always the same ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64
from pydantic import Field, model_validator

from allsight.config import Config, ConfigError
from allsight.data.listings import SampleClasses, classes_listed, name_of
from allsight.types import Sample

Rows = Int64[np.ndarray, " _"]

_OF_SAMPLES = ("labels", "lengths", "sizes_hw_px")
"""What readers may know of each of their samples."""


class Subset(Config):
    """Which samples: all, or some of every class, drawn once for all by the seed.

    A smaller subset of the same seed lies within a larger one, so that 1 % and 10 % of the labels compare.

    Attributes:
        share: Of the samples of each class, rounded, one at least.
        per_class: Samples of each class, in place of a share.
        seed: Other seeds give other samples.
    """

    share: float | None = Field(default=None, gt=0, le=1)
    per_class: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_way(self) -> Subset:
        if self.share is not None and self.per_class is not None:
            raise ValueError(
                f"expected share or per_class, got share={self.share:g} and per_class={self.per_class}"
            )
        return self

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self.share is None and self.per_class is None

    def rows(self, reader: Any, *, path: str) -> Rows:
        """The indices of the samples, rising. Of a sample with several classes the first listed counts.

        Args:
            reader: Where the samples are; it must know their classes (`ListsClasses`).
            path: Of these settings, for errors.
        Raises:
            ConfigError: The reader does not tell classes, or has fewer samples of one than asked for.
        """
        if self.is_all:
            return np.arange(len(reader), dtype=np.int64)
        samples, labels = classes_listed(reader, setting=path, instead="leave it out").pairs()
        samples, first = np.unique(samples, return_index=True)
        labels = labels[first]
        picked = [self._of_class(int(c), samples[labels == c], reader, path) for c in np.unique(labels)]
        return np.sort(np.concatenate(picked))

    def _of_class(self, label: int, samples: Rows, reader: Any, path: str) -> Rows:
        count = self.per_class or max(1, int((self.share or 1.0) * len(samples) + 0.5))
        if count > len(samples):
            raise ConfigError(
                f"{path}.per_class: {count}, but {name_of(reader)} has {len(samples)} samples of class "
                f"{label}; lower it, or set share"
            )
        random = np.random.Philox(np.random.SeedSequence([self.seed, label]))
        return np.random.Generator(random).permutation(samples)[:count]


class SomeSamples:
    """Some of a reader's samples, as if there were no others.

    Args:
        reader: Has the samples.
        rows: Which of them, rising.
    """

    def __init__(self, reader: Any, rows: Rows) -> None:
        self._reader, self._rows = reader, rows
        for name in ("name", "split", "classes", "notes"):
            setattr(self, name, getattr(reader, name, ()))
        for name in _OF_SAMPLES:
            if hasattr(reader, name):
                setattr(self, name, np.asarray(getattr(reader, name))[rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        return self._reader[int(self._rows[index])]

    def sample_classes(self) -> SampleClasses:
        """The classes of each sample."""
        return _classes_at(self._reader.sample_classes(), self._rows)


class SomeLabels:
    """All of a reader's samples, of which only some tell their class.

    Args:
        reader: Has the samples.
        rows: Those whose target `label` stays.
    """

    def __init__(self, reader: Any, rows: Rows) -> None:
        self._reader = reader
        self._stays = np.zeros(len(reader), dtype=bool)
        self._stays[rows] = True
        for name in ("name", "split", "classes", "notes"):
            setattr(self, name, getattr(reader, name, ()))

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Sample:
        sample: Sample = self._reader[index]
        if not self._stays[index]:
            sample = _without_label(sample)
        return sample

    def sample_classes(self) -> SampleClasses:
        """The classes that are told."""
        classes: SampleClasses = self._reader.sample_classes()
        counts = np.diff(classes.offsets) * self._stays
        kept = np.repeat(self._stays, np.diff(classes.offsets))
        return SampleClasses(classes.labels[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _without_label(sample: Sample) -> Sample:
    targets = {name: value for name, value in sample.targets.items() if name != "label"}
    return replace(sample, targets=targets)


def _classes_at(classes: SampleClasses, rows: Rows) -> SampleClasses:
    spans = [classes.labels[classes.offsets[row] : classes.offsets[row + 1]] for row in rows.tolist()]
    return SampleClasses.of_sets([span.tolist() for span in spans])
