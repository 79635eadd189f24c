"""One transform after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from allsight.data.transforms.carry import Cut
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


@runtime_checkable
class Cuts(Protocol):
    """A transform that cuts a window out and does nothing else."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...

    def cut(self, sample: Sample, rng: np.random.Generator) -> Cut:
        """Draw what it would cut out."""
        ...


@runtime_checkable
class Mirrors(Protocol):
    """A transform that mirrors left and right or does nothing."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...

    def is_drawn(self, rng: np.random.Generator) -> bool:
        """Draw whether it would mirror."""
        ...


class Compose:
    """Apply transforms in order, all fed from the same generator: `Compose(Resize(64), HorizontalFlip())`.

    A crop with a flip behind it is one pass over the pixels; the result is the same.
    """

    def __init__(self, *transforms: Transform) -> None:
        self.transforms = transforms
        self._passes = _passes(transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self._passes:
            sample = transform(sample, rng)
        return sample

    def least_hw_px(self, height: int, width: int, fresh: Fresh) -> tuple[int, int] | None:
        """The size that suffices for what comes first; None: nobody knows."""
        least = getattr(self.transforms[0], "least_hw_px", None) if self.transforms else None
        return None if least is None else least(height, width, fresh)

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


@dataclass(frozen=True)
class _CutAndMirror:
    """Two transforms in one pass."""

    cuts: Cuts
    mirrors: Mirrors

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        cut = self.cuts.cut(sample, rng)
        return cut.of(sample, mirrored=self.mirrors.is_drawn(rng))


def _passes(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    passes: list[Transform] = []
    for transform in transforms:
        before = passes[-1] if passes else None
        if (
            isinstance(before, Cuts)
            and isinstance(transform, Mirrors)
            and _is_its_own(before, "cut")
            and _is_its_own(transform, "is_drawn")
        ):
            passes[-1] = _CutAndMirror(before, transform)
        else:
            passes.append(transform)
    return tuple(passes)


def _is_its_own(transform: Transform, method: str) -> bool:
    """Whether the method belongs to the class itself: a subclass may do more when it is called."""
    return method in vars(type(transform))
