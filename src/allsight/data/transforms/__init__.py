"""Picklable callables (sample, generator) -> sample that augment and size pictures with their annotations."""

from allsight.data.transforms.affine import shear, shift, turn, warp
from allsight.data.transforms.carry import (
    FILL,
    Window,
    crop_and_resize,
    flip_horizontally,
    pad_right_and_below,
)
from allsight.data.transforms.clips import ResizeClip
from allsight.data.transforms.colour import ColorJitter, RandomErasing
from allsight.data.transforms.compose import Compose, Transform
from allsight.data.transforms.frames import PickFrames
from allsight.data.transforms.geometry import (
    CenterCrop,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    RandomScale,
    ReflectPad,
    Resize,
)
from allsight.data.transforms.mixing import Mix, cutmix, mixup, soft_label
from allsight.data.transforms.photometric import (
    GaussianBlur,
    Grey,
    PhotometricDistortion,
    Solarise,
    Sometimes,
)
from allsight.data.transforms.rand_augment import RandAugment
from allsight.data.transforms.rigs import (
    DropCameras,
    GridMask,
    JitterRig,
    NoisyExtrinsics,
    PermuteCameras,
    RandomCropRig,
    ResizeRig,
)
from allsight.data.transforms.views import CentralView, RandomView, Views
from allsight.data.transforms.world_moves import MoveWorld, WithinRange, move_world

__all__ = [
    "FILL",
    "CenterCrop",
    "CentralView",
    "ColorJitter",
    "Compose",
    "DropCameras",
    "GaussianBlur",
    "Grey",
    "GridMask",
    "HorizontalFlip",
    "JitterRig",
    "Mix",
    "MoveWorld",
    "NoisyExtrinsics",
    "PermuteCameras",
    "PhotometricDistortion",
    "PickFrames",
    "RandAugment",
    "RandomCrop",
    "RandomCropRig",
    "RandomErasing",
    "RandomResizedCrop",
    "RandomScale",
    "RandomView",
    "ReflectPad",
    "Resize",
    "ResizeClip",
    "ResizeRig",
    "Solarise",
    "Sometimes",
    "Transform",
    "Views",
    "Window",
    "WithinRange",
    "crop_and_resize",
    "cutmix",
    "flip_horizontally",
    "mixup",
    "move_world",
    "pad_right_and_below",
    "shear",
    "shift",
    "soft_label",
    "turn",
    "warp",
]
