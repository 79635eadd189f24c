"""What published ResNet weights look like.

Source: pytorch/vision:torchvision/models/resnet.py;
open-mmlab/mmdetection:mmdet/models/backbones/resnet.py and
open-mmlab/mmcv:mmcv/ops/modulated_deform_conv.py (older files name the offset convolution `conv2_offset`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from allsight.types import CheckpointError

_DEPTHS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "r18",
    ("basic", (3, 4, 6, 3)): "r34",
    ("bottleneck", (3, 4, 6, 3)): "r50",
    ("bottleneck", (3, 4, 23, 3)): "r101",
    ("bottleneck", (3, 8, 36, 3)): "r152",
}


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with old names replaced."""
    return {re.sub(r"\.conv2_offset\.", ".conv2.conv_offset.", name): t for name, t in weights.items()}


def stage_of(name: str) -> int:
    """Number in `layer3.0.conv1.weight`; 0 for the stem."""
    match = re.match(r"layer(\d+)\.", name)
    return int(match[1]) if match else 0


def recognise(weights: Mapping[str, Tensor]) -> str:
    """The variant that weights belong to.

    Raises:
        CheckpointError: Not a ResNet, or one of no known depth.
    """
    blocks = {(int(m[1]), int(m[2])) for name in weights if (m := re.match(r"layer(\d+)\.(\d+)\.", name))}
    if "conv1.weight" not in weights or not blocks:
        some = ", ".join(list(weights)[:3])
        raise CheckpointError(f"ResNet: no 'conv1.weight' and 'layer1.0.' among the weights ({some} ...)")
    depths = tuple(sum(stage == i for stage, _ in blocks) for i in range(1, 1 + max(s for s, _ in blocks)))
    kind = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    variant = _DEPTHS.get((kind, depths))
    if variant is None:
        raise CheckpointError(f"ResNet: no variant has {kind} blocks and depths {depths}; pass config=")
    deform = {stage_of(name) for name in weights if ".conv_offset." in name}
    if deform and (variant, deform) != ("r101", {3, 4}):
        raise CheckpointError(
            f"ResNet: deformable stages {sorted(deform)} of {variant} are no variant; pass config="
        )
    return "r101_caffe_dcn" if deform else variant


def turned(weights: Mapping[str, Tensor], channel_order: str) -> dict[str, Tensor]:
    """The weights with the first convolution's channels between RGB and the published order, either way."""
    if channel_order == "rgb" or "conv1.weight" not in weights:
        return dict(weights)
    return {**weights, "conv1.weight": weights["conv1.weight"].flip(1)}


def complete(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The weights with counters of batch norms, which old files lack and frozen norms never read."""
    lacking = [name for name in wanted if name.endswith(".num_batches_tracked") and name not in weights]
    return {**weights, **{name: torch.zeros((), dtype=torch.int64) for name in lacking}}
