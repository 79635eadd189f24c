"""One transform after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from allsight.types import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]
Fresh = Callable[[], np.random.Generator]


@runtime_checkable
class Shrinks(Protocol):
    """A transform that may need fewer pixels than a picture has."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...

    def least_hw_px(self, height: int, width: int, fresh: Fresh) -> tuple[int, int] | None:
        """The smallest size of a picture of this shape from which it makes all that is in its result.

        Args:
            fresh: Makes the generator that the transform will get, anew each time.
        Returns:
            None, if that is the size the picture has.
        """
        ...


class Compose:
    """Apply transforms in order, all fed from the same generator: `Compose(Resize(64), HorizontalFlip())`."""

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample

    def least_hw_px(self, height: int, width: int, fresh: Fresh) -> tuple[int, int] | None:
        """The size that suffices for what comes first; None: nobody knows."""
        least = getattr(self.transforms[0], "least_hw_px", None) if self.transforms else None
        return None if least is None else least(height, width, fresh)

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"
