"""Mixup and CutMix on the samples of one group: pictures are mixed, and labels become shares of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allsight.types import Image, LabelMap, Sample


@dataclass(frozen=True)
class Mix:
    """Mixup or CutMix, one of them for each group. What `Task.mix` of a classification calls.

    Args:
        num_classes: Length of the soft labels.
        mixup_alpha: Shape of the beta distribution mixup's shares are drawn from; 0 switches mixup off.
        cutmix_alpha: The same for CutMix.
        switch: Probability of CutMix where both are on.
        probability: Of mixing at all; labels become soft in any case.

    Source: huggingface/pytorch-image-models:timm/data/mixup.py (batch mode).
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch: float = 0.5
    probability: float = 1.0

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        chance, which = rng.random(2).tolist()
        if chance >= self.probability or max(self.mixup_alpha, self.cutmix_alpha) <= 0:
            return [_with_label(sample, soft_label(sample, self.num_classes)) for sample in samples]
        if self.mixup_alpha <= 0 or (self.cutmix_alpha > 0 and which < self.switch):
            return cutmix(samples, rng, num_classes=self.num_classes, alpha=self.cutmix_alpha)
        return mixup(samples, rng, num_classes=self.num_classes, alpha=self.mixup_alpha)


def mixup(
    samples: Sequence[Sample], rng: np.random.Generator, *, num_classes: int, alpha: float = 0.8
) -> list[Sample]:
    """Average each picture of the group with the next, the last with the first, by one random share.

    Args:
        samples: Pictures of one size, with a target `label` (class, or shares of classes).
        alpha: The share is drawn from a beta distribution (alpha, alpha).

    Raises:
        ValueError: Pictures differ in size or type; a label is missing or no class; there are annotations of
            pixels or objects, which an average of pictures has not.

    Source: Zhang et al., arXiv:1710.09412.
    """
    share = float(rng.beta(alpha, alpha))
    _check(samples, allowed=())
    mixed = []
    for own, other in _pairs(samples):
        pixels = own.image.pixels * share + other.image.pixels * (1 - share)
        if own.image.pixels.dtype is torch.uint8:
            pixels = pixels.round_().to(torch.uint8)
        mixed.append(_mixed(own, other, pixels, share, num_classes))
    return mixed


def cutmix(
    samples: Sequence[Sample], rng: np.random.Generator, *, num_classes: int, alpha: float = 1.0
) -> list[Sample]:
    """Replace one random rectangle of each picture by that of the next, the last's by the first's.

    Label maps are cut along with their pictures. The share of the label is that of the area.

    Args and errors: as `mixup`; label maps are allowed.

    Source: Yun et al., arXiv:1905.04899.
    """
    share = float(rng.beta(alpha, alpha))
    down, across = rng.random(2).tolist()
    _check(samples, allowed=(LabelMap,))
    height, width = samples[0].image.hw_px
    rows, columns = _cut(height, share, down), _cut(width, share, across)
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    share = 1 - area / (height * width)
    mixed = []
    for own, other in _pairs(samples):
        pixels = own.image.pixels.clone()
        pixels[:, rows, columns] = other.image.pixels[:, rows, columns]
        targets = dict(own.targets)
        for name, target in own.targets.items():
            if isinstance(target, LabelMap):
                labels = target.pixels.clone()
                labels[rows, columns] = other.targets[name].pixels[rows, columns]
                targets[name] = replace(target, pixels=labels)
        mixed.append(_mixed(replace(own, targets=targets), other, pixels, share, num_classes))
    return mixed


def soft_label(sample: Sample, num_classes: int) -> Float[Tensor, " classes"]:
    """The sample's `label` as shares of classes."""
    label = sample.targets.get("label")
    if isinstance(label, Tensor) and label.shape == (num_classes,):
        return label.to(torch.float32)
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise ValueError(f"sample {sample.id!r}: label {label!r} is none of {num_classes} classes")
    soft = torch.zeros(num_classes)
    soft[label] = 1.0
    return soft


def _mixed(own: Sample, other: Sample, pixels: Tensor, share: float, num_classes: int) -> Sample:
    label = soft_label(own, num_classes) * share + soft_label(other, num_classes) * (1 - share)
    image = replace(own.image, pixels=pixels)
    return _with_label(replace(own, inputs={**own.inputs, "image": image}), label)


def _with_label(sample: Sample, label: Float[Tensor, " classes"]) -> Sample:
    return replace(sample, targets={**sample.targets, "label": label})


def _pairs(samples: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    return list(zip(samples, [*samples[1:], samples[0]], strict=True))


def _cut(size: int, share: float, place: float) -> slice:
    """A stretch around a random middle that leaves `share` of a square's area; cut at the edges."""
    half = int(size * math.sqrt(1 - share)) // 2
    middle = int(place * size)
    return slice(max(middle - half, 0), min(middle + half, size))


def _check(samples: Sequence[Sample], allowed: tuple[type, ...]) -> None:
    if not samples:
        raise ValueError("mixing needs at least one sample")
    first = samples[0]
    for sample in samples:
        image: Image = sample.image
        if image.hw_px != first.image.hw_px or image.pixels.dtype is not first.image.pixels.dtype:
            raise ValueError(
                f"samples {first.id!r} and {sample.id!r} differ: {first.image.hw_px} px of "
                f"{first.image.pixels.dtype} and {image.hw_px} px of {image.pixels.dtype}; expected one size"
            )
        for name, target in sample.targets.items():
            if name != "label" and not isinstance(target, allowed):
                raise ValueError(
                    f"sample {sample.id!r}: target {name!r} ({type(target).__name__}) cannot be mixed"
                )
