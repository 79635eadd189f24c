"""Further changes of colour and sharpness, for views of one picture; uint8 pictures only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import ImageFilter, ImageOps

from allsight.data.transforms.affine import to_pillow, with_pixels
from allsight.data.transforms.carry import apply
from allsight.data.transforms.compose import Transform
from allsight.types import Sample


@dataclass(frozen=True)
class Sometimes:
    """Apply a transform with a probability. Its draws are taken in any case, so that later ones stay."""

    transform: Transform
    probability: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        chance = rng.random()
        # The inner transform has a generator of its own: how much it draws then moves nothing after it.
        inner = np.random.Generator(np.random.Philox(int(rng.integers(2**63))))
        return self.transform(sample, inner) if chance < self.probability else sample


@dataclass(frozen=True)
class Grey:
    """Take the colours away."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        picture = to_pillow(sample.image, sample.id).convert("L").convert("RGB")
        return apply(sample, lambda image: with_pixels(image, picture))


@dataclass(frozen=True)
class GaussianBlur:
    """Blur with a width drawn evenly.

    Args:
        sigma_px: Range of the standard deviation.
    Source: SimCLR, arXiv:2002.05709, appendix A; 0.1 to 2 pixels as in BYOL and MoCo v3.
    """

    sigma_px: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_px[0] <= self.sigma_px[1]:
            raise ValueError(f"GaussianBlur: expected 0 <= low <= high, got {self.sigma_px}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        low, high = self.sigma_px
        sigma = low + (high - low) * float(rng.random())
        picture = to_pillow(sample.image, sample.id).filter(ImageFilter.GaussianBlur(sigma))
        return apply(sample, lambda image: with_pixels(image, picture))


@dataclass(frozen=True)
class Solarise:
    """Invert all values of `threshold` and above."""

    threshold: int = 128

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        picture = ImageOps.solarize(to_pillow(sample.image, sample.id), self.threshold)
        return apply(sample, lambda image: with_pixels(image, picture))
