"""All samples of a data set, of which only some tell their class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from allsight.data.listings import SampleClasses
from allsight.types import Sample


class SomeLabels:
    """A reader whose other samples lose their target `label`, and tell nothing of their classes.

    Args:
        reader: Has the samples.
        rows: Those that keep it; see `policies.few_of`.
    """

    def __init__(self, reader: Any, rows: Int64[np.ndarray, " _"]) -> None:
        self._reader = reader
        self._keeps = np.zeros(len(reader), dtype=bool)
        self._keeps[rows] = True
        for name in ("name", "split", "classes", "notes"):
            setattr(self, name, getattr(reader, name, ()))

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Sample:
        sample: Sample = self._reader[index]
        if self._keeps[index]:
            return sample
        return replace(sample, targets={k: v for k, v in sample.targets.items() if k != "label"})

    def sample_classes(self) -> SampleClasses:
        """The classes that are told."""
        classes: SampleClasses = self._reader.sample_classes()
        counts = np.diff(classes.offsets)
        told = classes.labels[np.repeat(self._keeps, counts)]
        return SampleClasses(told, np.concatenate([[0], np.cumsum(counts * self._keeps)]).astype(np.int64))
