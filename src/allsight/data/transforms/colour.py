"""Transforms that change what pixels look like and not where they are. Annotations stay as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageEnhance

from allsight.data.transforms.affine import to_pillow, with_pixels
from allsight.data.transforms.carry import apply
from allsight.types import Image, Sample

_ATTEMPTS = 10


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue by random amounts in random order; uint8 pictures only.

    Args:
        brightness, contrast, saturation: Factors are drawn evenly from 1 - value to 1 + value, never below 0.
        hue: The turn around the colour circle is drawn evenly from -hue to hue; 0.5 is half a circle.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"ColorJitter: expected amounts of 0 or more and hue up to 0.5, got {self}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        draws = rng.random(8)
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        picture = to_pillow(sample.image, sample.id)
        for which in np.argsort(draws[4:]).tolist():
            amount = (2 * float(draws[which]) - 1) * amounts[which]
            if amounts[which] == 0:
                continue
            if which == 3:
                picture = _turn_hue(picture, amount)
            else:
                picture = _ENHANCERS[which](picture).enhance(max(0.0, 1 + amount))
        return apply(sample, lambda image: with_pixels(image, picture))


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _turn_hue(picture: PillowImage.Image, share: float) -> PillowImage.Image:
    hue, saturation, value = picture.convert("HSV").split()
    step = round(share * 256) % 256
    turned = hue.point([(level + step) % 256 for level in range(256)])
    return PillowImage.merge("HSV", (turned, saturation, value)).convert("RGB")


@dataclass(frozen=True)
class RandomErasing:
    """Overwrite a random rectangle, for classification: annotations keep what is hidden.

    Args:
        probability: Of erasing at all.
        area: Range of the rectangle's share of the picture, drawn evenly.
        aspect: Range of its height / width, drawn evenly on a log scale.
        how: `noise`: a normal draw for each value, with `mean` and `std`; `mean`: a plain colour.
        mean, std: Of uint8 pixels, per channel. Floating-point pictures, being normalised, get 0 and 1.

    Ten rectangles are tried; if none fits, nothing is erased.

    Source: Zhong et al., arXiv:1708.04896; ranges and noise as in huggingface/pytorch-image-models:timm/data.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    how: Literal["noise", "mean"] = "noise"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        draws = rng.random(2 * _ATTEMPTS + 3).tolist()
        # The noise has a generator of its own, so that its size does not shift the draws that follow.
        noise_seed = int(rng.integers(2**63))
        if draws[-1] >= self.probability:
            return sample
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        rectangle = self._rectangle(height, width, draws)
        if rectangle is None:
            return sample
        rows, columns = rectangle

        def erase(image: Image) -> Image:
            pixels = image.pixels.clone()
            pixels[:, rows, columns] = self._content(pixels[:, rows, columns], noise_seed)
            return replace(image, pixels=pixels)

        return apply(sample, erase)

    def _rectangle(self, height: int, width: int, draws: list[float]) -> tuple[slice, slice] | None:
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for attempt in range(_ATTEMPTS):
            area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * draws[2 * attempt])
            aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top, left = int(draws[-3] * (height - h + 1)), int(draws[-2] * (width - w + 1))
                return slice(top, top + h), slice(left, left + w)
        return None

    def _content(self, old: torch.Tensor, seed: int) -> torch.Tensor:
        height, width = old.shape[1:]
        noise = np.zeros((height, width, 3), dtype=np.float32)
        if self.how == "noise":
            noise = np.random.Generator(np.random.Philox(seed)).standard_normal(noise.shape, dtype=np.float32)
        if old.dtype is torch.uint8:
            mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
            noise = np.rint(noise * std + mean).clip(0, 255)
        return torch.from_numpy(noise).permute(2, 0, 1).to(old.dtype)
