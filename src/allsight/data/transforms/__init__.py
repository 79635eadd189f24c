"""Picklable callables (sample, generator) -> sample that augment and size pictures with their annotations."""

from allsight.data.transforms.carry import (
    FILL,
    Window,
    crop_and_resize,
    flip_horizontally,
    pad_right_and_below,
)
from allsight.data.transforms.compose import Compose, Transform
from allsight.data.transforms.geometry import (
    CenterCrop,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    RandomScale,
    Resize,
)

__all__ = [
    "FILL",
    "CenterCrop",
    "Compose",
    "HorizontalFlip",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomScale",
    "Resize",
    "Transform",
    "Window",
    "crop_and_resize",
    "flip_horizontally",
    "pad_right_and_below",
]
