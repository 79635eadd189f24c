"""RandAugment with the operations and strengths that image classifiers are commonly trained with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageEnhance, ImageOps

from allsight.data.transforms.affine import Affine, shear, shift, to_pillow, turn, warp, with_pixels
from allsight.data.transforms.carry import FILL, Interpolation, apply
from allsight.types import Sample

_STRONGEST = 10.0


@dataclass(frozen=True)
class RandAugment:
    """Apply `layers` operations drawn evenly out of fifteen. uint8 pictures only.

    Seven change colours by an amount that grows with the magnitude (colour, contrast, brightness, sharpness,
    posterise, solarise, solarise-add), three have no strength (auto-contrast, equalise, invert), five move
    pixels (turn, shear and shift), and these carry boxes, masks and label maps along.

    Args:
        layers: How many operations, drawn with replacement.
        magnitude: Their strength, 0 to 10.
        magnitude_std: Standard deviation of a normal draw added to it for each operation.
        probability: Of applying an operation that was drawn.
        fill: RGB of what is moved in from outside.
        interpolation: How pixels that move are looked up.

    At a magnitude of 10 posterise leaves no bit, which is a black picture: one of 660 with the default
    settings, as in the source.

    Source: Cubuk et al., arXiv:1909.13719; the variant `rand-m9-mstd0.5-inc1` as in
        huggingface/pytorch-image-models:timm/data/auto_augment.py.
    """

    layers: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    probability: float = 0.5
    fill: tuple[int, int, int] = FILL
    interpolation: Interpolation = "bilinear"

    @classmethod
    def parse(
        cls, text: str, *, fill: tuple[int, int, int] = FILL, interpolation: Interpolation = "bilinear"
    ) -> RandAugment:
        """From timm's notation: `rand-m9-mstd0.5-inc1`, with `n` for layers and `p` for probability.

        Raises:
            ValueError: Another notation, or `inc0` (the operations that weaken with the magnitude).
        """
        parts = text.split("-")
        values = {}
        for part in parts[1:]:
            match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part)
            if match is None:
                raise ValueError(
                    f"RandAugment {text!r}: cannot read {part!r}; expected m, n, p, mstd, inc and a number"
                )
            values[match[1]] = float(match[2])
        if parts[0] != "rand" or values.pop("inc", 0.0) != 1.0:
            raise ValueError(f"RandAugment {text!r}: expected rand-...-inc1, such as rand-m9-mstd0.5-inc1")
        return cls(
            layers=int(values.get("n", 2)),
            magnitude=values.get("m", 10.0),
            magnitude_std=values.get("mstd", 0.0),
            probability=values.get("p", 0.5),
            fill=fill,
            interpolation=interpolation,
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        draws, normals = rng.random((self.layers, 3)).tolist(), rng.standard_normal(self.layers).tolist()
        for (which, chance, side), normal in zip(draws, normals, strict=True):
            if chance >= self.probability:
                continue
            strength = min(max(self.magnitude + self.magnitude_std * normal, 0.0), _STRONGEST) / _STRONGEST
            sign = 1.0 if side < 0.5 else -1.0
            operation = _OPERATIONS[int(which * len(_OPERATIONS))]
            sample = operation(sample, strength, sign, self)
        return sample


def _colour(change: Callable[[PillowImage.Image, float, float], PillowImage.Image]) -> _Operation:
    def operation(sample: Sample, strength: float, sign: float, settings: RandAugment) -> Sample:
        picture = change(to_pillow(sample.image, sample.id), strength, sign)
        return apply(sample, lambda image: with_pixels(image, picture))

    return operation


def _enhance(kind: Callable[[PillowImage.Image], ImageEnhance._Enhance]) -> _Operation:
    return _colour(lambda picture, strength, sign: kind(picture).enhance(max(0.1, 1 + sign * 0.9 * strength)))


def _move(matrix: Callable[[float, int, int], Affine]) -> _Operation:
    def operation(sample: Sample, strength: float, sign: float, settings: RandAugment) -> Sample:
        height, width = sample.image.valid_hw_px or sample.image.hw_px
        old_from_new = matrix(sign * strength, height, width)
        return warp(sample, old_from_new, fill=settings.fill, interpolation=settings.interpolation)

    return operation


def _posterise(picture: PillowImage.Image, bits: int) -> PillowImage.Image:
    # Pillow refuses to leave no bit at all; older ones, with which networks were trained, gave black.
    return ImageOps.posterize(picture, bits) if bits else picture.point([0] * 768)


def _solarise_add(picture: PillowImage.Image, strength: float, sign: float) -> PillowImage.Image:
    add = min(128, int(110 * strength))
    return picture.point([min(255, level + add) if level < 128 else level for level in range(256)] * 3)


_Operation = Callable[[Sample, float, float, RandAugment], Sample]

_OPERATIONS: tuple[_Operation, ...] = (
    _colour(lambda picture, strength, sign: ImageOps.autocontrast(picture)),
    _colour(lambda picture, strength, sign: ImageOps.equalize(picture)),
    _colour(lambda picture, strength, sign: ImageOps.invert(picture)),
    _move(lambda amount, height, width: turn(30.0 * amount, height, width)),
    _colour(lambda picture, strength, sign: _posterise(picture, 4 - int(4 * strength))),
    _colour(lambda picture, strength, sign: ImageOps.solarize(picture, 256 - min(256, int(256 * strength)))),
    _colour(_solarise_add),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _move(lambda amount, height, width: shear(x=0.3 * amount)),
    _move(lambda amount, height, width: shear(y=0.3 * amount)),
    _move(lambda amount, height, width: shift(x_px=0.45 * amount * width)),
    _move(lambda amount, height, width: shift(y_px=0.45 * amount * height)),
)
