"""Further changes of colour and sharpness, for views of one picture; uint8 pictures only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageFilter, ImageOps

from allsight.data.transforms.affine import bytes_of, to_pillow, with_pixels
from allsight.data.transforms.carry import apply
from allsight.data.transforms.compose import Transform
from allsight.ops.recolour import Recolouring, recolour
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


@dataclass(frozen=True)
class PhotometricDistortion:
    """Change brightness, contrast, saturation, hue and the order of the channels, each with probability 1/2.

    Contrast comes before saturation and hue or after them. Values are cut to 0..255 after each change.

    Args:
        brightness: Added to all values: drawn evenly between this much less and more.
        contrast: Factor on all values: drawn evenly between 1 - this and 1 + this.
        saturation: The same for the saturation (HSV).
        hue_deg: Turn around the colour circle: drawn evenly between this much either way.

    Source: SSD, arXiv:1512.02325, section 2.2; open-mmlab/mmdetection:mmdet/datasets/pipelines/transforms.py,
    `PhotoMetricDistortion`.
    """

    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue_deg: float = 18.0

    def __post_init__(self) -> None:
        amounts = (self.brightness, self.contrast, self.saturation, self.hue_deg)
        if min(amounts) < 0 or max(self.contrast, self.saturation) > 1 or self.hue_deg > 180:
            raise ValueError(
                "PhotometricDistortion: expected amounts of 0 or more, contrast and saturation up to 1, "
                f"hue up to 180, got {self}"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        amounts = (2 * rng.random(4) - 1) * (self.brightness, self.contrast, self.saturation, self.hue_deg)
        happens, contrast_first = rng.random(5) < 0.5, bool(rng.random() < 0.5)
        order = rng.permutation(3)
        change = Recolouring(
            brightness=float(amounts[0]) if happens[0] else 0.0,
            contrast=1 + float(amounts[1]) if happens[1] else 1.0,
            saturation=1 + float(amounts[2]) if happens[2] else 1.0,
            hue_deg=float(amounts[3]) if happens[3] else 0.0,
            contrast_first=contrast_first,
            order=tuple(order.tolist()) if happens[4] else (0, 1, 2),
        )
        return apply(
            sample, lambda image: replace(image, pixels=recolour(bytes_of(image, sample.id), change))
        )
