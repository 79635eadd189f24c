"""One transform after another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from allsight.types import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]


class Compose:
    """Apply transforms in order, all fed from the same generator: `Compose(Resize(64), HorizontalFlip())`."""

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"
