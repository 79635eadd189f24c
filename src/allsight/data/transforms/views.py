"""Several views of one decoded picture, each with the record of where it lies in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from allsight.data.transforms.carry import Interpolation, Window, crop_and_resize
from allsight.data.transforms.compose import Transform
from allsight.data.transforms.geometry import CenterCrop, RandomResizedCrop, Resize
from allsight.types import Crop, Sample


@dataclass(frozen=True)
class RandomView:
    """A random crop of the input `image`, perhaps mirrored, then changed in looks; `image.crop` tells where.

    Args:
        size_px: Side of the view.
        area: Range of the crop's share of the picture.
        flip: Probability of mirroring.
        looks: Transforms that move no pixel, in order.
        interpolation: How the crop is resized.
    """

    size_px: int
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    looks: tuple[Transform, ...] = ()
    interpolation: Interpolation = "bicubic"

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        crop = RandomResizedCrop(self.size_px, self.area, interpolation=self.interpolation)
        window = crop.window(height, width, rng)
        is_flipped = bool(rng.random() < self.flip)
        size = (self.size_px, self.size_px)
        view = crop_and_resize(sample, window, size, interpolation=self.interpolation, mirrored=is_flipped)
        view = _with_crop(view, window, width, is_flipped)
        for look in self.looks:
            view = look(view, rng)
        return view


@dataclass(frozen=True)
class CentralView:
    """The whole of a picture's middle, as evaluation sees it."""

    size_px: int
    interpolation: Interpolation = "bicubic"

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        side = min(height, width)
        window = Window((width - side) // 2, (height - side) // 2, side, side)
        view = Resize(self.size_px, "short", interpolation=self.interpolation)(sample, rng)
        return _with_crop(CenterCrop(self.size_px)(view, rng), window, width, False)


@dataclass(frozen=True)
class Views:
    """Make `sample.views` from its picture, each by a transform with a generator of its own.

    The first view also becomes the input `image`. The picture is decoded once.

    Args:
        transforms: One for each view; each leaves `image.crop`.
    """

    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        seeds: Sequence[int] = rng.integers(2**63, size=len(self.transforms)).tolist()
        made = []
        for transform, seed in zip(self.transforms, seeds, strict=True):
            inner = np.random.Generator(np.random.Philox(seed))
            made.append(transform(replace(sample, targets={}), inner).image)
        inputs = {**sample.inputs, "image": made[0]}
        return replace(sample, inputs=inputs, views=tuple({"image": image} for image in made))


def _with_crop(view: Sample, window: Window, width: int, is_flipped: bool) -> Sample:
    left = width - window.left - window.width if is_flipped else window.left
    crop = Crop(window.top, left, window.height, window.width, width, is_flipped)
    return replace(view, inputs={**view.inputs, "image": replace(view.image, crop=crop)})
