"""Transforms that move pixels, and with them boxes, masks and label maps.

Each is a picklable callable (sample, generator) -> sample. Random ones take the same number of values from
the generator whatever the picture and whatever comes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from allsight.data.transforms.carry import (
    FILL,
    Cut,
    Interpolation,
    PixelMap,
    Window,
    crop_and_resize,
    flip_horizontally,
    pad_right_and_below,
)
from allsight.data.transforms.compose import Fresh
from allsight.types import DataError, Objects, Sample

_ATTEMPTS = 10


@dataclass(frozen=True)
class Resize:
    """Bring the picture to a size.

    Args:
        size_px: A side, or (height, width).
        how: `exact`: to `size_px`, aspect not kept. `short`: the shorter side becomes `size_px` (one number).
            `fit`: as large as fits into `size_px`, then padded to it at the right and below.
        longest_px: With `short`: the longer side is at most this, whatever becomes of the shorter one.
        fill: RGB of the padding.
    """

    size_px: int | tuple[int, int]
    how: Literal["exact", "short", "fit"] = "exact"
    longest_px: int | None = None
    interpolation: Interpolation = "bilinear"
    fill: tuple[int, int, int] = FILL

    def __post_init__(self) -> None:
        if self.how == "short" and not isinstance(self.size_px, int):
            raise ValueError(f"Resize(how='short') takes one number, got {self.size_px}")
        if self.how != "short" and self.longest_px is not None:
            raise ValueError(f"Resize(longest_px=...) goes with how='short', got how={self.how!r}")
        _pair(self.size_px)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        canvas = _pair(self.size_px)
        if self.how == "exact":
            hw_px = canvas
        else:
            if self.how == "short":
                scale = canvas[0] / min(height, width)
                if self.longest_px is not None:
                    scale = min(scale, self.longest_px / max(height, width))
            else:
                scale = min(canvas[0] / height, canvas[1] / width)
            hw_px = _scaled(height, width, scale)
            if self.how == "fit":
                hw_px = min(hw_px[0], canvas[0]), min(hw_px[1], canvas[1])
        sample = crop_and_resize(
            sample, Window(0, 0, width, height), hw_px, interpolation=self.interpolation, fill=self.fill
        )
        return pad_right_and_below(sample, canvas, fill=self.fill) if self.how == "fit" else sample


@dataclass(frozen=True)
class RandomScale:
    """Resize by a factor drawn evenly on a log scale; `RandomCrop` after it brings batches to one size."""

    low: float = 0.5
    high: float = 2.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"RandomScale: expected 0 < low <= high, got {self.low} and {self.high}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        scale = self.low * (self.high / self.low) ** rng.random()
        return crop_and_resize(
            sample,
            Window(0, 0, width, height),
            _scaled(height, width, scale),
            interpolation=self.interpolation,
        )


@dataclass(frozen=True)
class CenterCrop:
    """Cut the middle out; a smaller picture is padded evenly on both sides."""

    size_px: int | tuple[int, int]
    fill: tuple[int, int, int] = FILL

    def __post_init__(self) -> None:
        _pair(self.size_px)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.cut(sample, rng).of(sample)

    def cut(self, sample: Sample, rng: np.random.Generator) -> Cut:
        """What would be cut out."""
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        crop = _pair(self.size_px)
        window = Window((width - crop[1]) // 2, (height - crop[0]) // 2, crop[1], crop[0])
        return Cut(window, crop, fill=self.fill)


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window out at a random place; a picture smaller than it lands at a random place in padding.

    Args:
        size_px: A side, or (height, width).
        padding_px: As if the picture had this much padding on each side.
        fill: RGB of the padding.
    """

    size_px: int | tuple[int, int]
    padding_px: int = 0
    fill: tuple[int, int, int] = FILL

    def __post_init__(self) -> None:
        _pair(self.size_px)
        if self.padding_px < 0:
            raise ValueError(f"RandomCrop: padding_px must be 0 or more, got {self.padding_px}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.cut(sample, rng).of(sample)

    def cut(self, sample: Sample, rng: np.random.Generator) -> Cut:
        """Draw what is cut out."""
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        crop = _pair(self.size_px)
        down, across = rng.random(2).tolist()
        window = Window(
            self._place(width, crop[1], across), self._place(height, crop[0], down), crop[1], crop[0]
        )
        return Cut(window, crop, fill=self.fill)

    def _place(self, size: int, crop: int, share: float) -> int:
        slack = size + 2 * self.padding_px - crop
        return int(share * (abs(slack) + 1)) * (1 if slack >= 0 else -1) - self.padding_px


@dataclass(frozen=True)
class ReflectPad:
    """Surround the picture with its own mirror image, so that a crop that reaches over an edge sees picture.

    For pictures with a label only: what is mirrored would need boxes and masks of its own.

    Raises:
        DataError: The sample has objects, a label map or segments.
    """

    padding_px: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        annotated = [n for n, target in sample.targets.items() if isinstance(target, Objects | PixelMap)]
        if annotated:
            raise DataError(
                f"{sample.id}: ReflectPad cannot carry '{annotated[0]}'; use RandomCrop", sample.id
            )
        image = sample.image
        widths = ((0, 0), (self.padding_px, self.padding_px), (self.padding_px, self.padding_px))
        pixels = torch.from_numpy(np.pad(image.pixels.numpy(), widths, mode="reflect"))
        grown = replace(image, pixels=pixels, valid_hw_px=None)
        return replace(sample, inputs={**sample.inputs, "image": grown})


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a window of random area and aspect, and bring it to a size.

    Args:
        size_px: A side, or (height, width).
        area: Range of the window's share of the picture, drawn evenly.
        aspect: Range of its width / height, drawn evenly on a log scale.

    Ten windows are tried; if none lies in the picture, the largest centred one of allowed aspect is taken.

    Source: Szegedy et al., arXiv:1409.4842, section 6; fall-back as in pytorch/vision:torchvision/transforms.
    """

    size_px: int | tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        _pair(self.size_px)
        if not 0 < self.area[0] <= self.area[1] or not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(
                f"RandomResizedCrop: expected ranges (low, high) above 0, got area={self.area}, "
                f"aspect={self.aspect}"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.cut(sample, rng).of(sample)

    def cut(self, sample: Sample, rng: np.random.Generator) -> Cut:
        """Draw what is cut out."""
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        return Cut(self.window(height, width, rng), _pair(self.size_px), self.interpolation)

    def least_hw_px(self, height: int, width: int, fresh: Fresh) -> tuple[int, int] | None:
        """The size at which the window is as large as the result: its size decides, not the picture's."""
        size = _pair(self.size_px)
        if height < 2 * size[0] or width < 2 * size[1]:
            return None
        window = self.window(height, width, fresh())
        # One pixel more: in the smaller picture the window is rounded anew.
        return (
            min(height, math.ceil(height * (size[0] + 1) / window.height)),
            min(width, math.ceil(width * (size[1] + 1) / window.width)),
        )

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Draw the window for a picture of this size."""
        return self._window(height, width, rng.random(2 * _ATTEMPTS + 2).tolist())

    def _window(self, height: int, width: int, draws: list[float]) -> Window:
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for attempt in range(_ATTEMPTS):
            area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * draws[2 * attempt])
            aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(draws[-2] * (width - w + 1)), int(draws[-1] * (height - h + 1))
                return Window(left, top, w, h)
        aspect = min(max(width / height, self.aspect[0]), self.aspect[1])
        w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
        return Window((width - w) // 2, (height - h) // 2, w, h)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with a probability."""

    probability: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return flip_horizontally(sample) if self.is_drawn(rng) else sample

    def is_drawn(self, rng: np.random.Generator) -> bool:
        """Draw whether to mirror."""
        return bool(rng.random() < self.probability)


def _pair(size_px: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size_px, size_px) if isinstance(size_px, int) else size_px
    if min(pair) < 1:
        raise ValueError(f"size_px: expected at least one pixel, got {size_px}")
    return pair


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, round(height * scale)), max(1, round(width * scale))
