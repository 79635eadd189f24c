"""The effective receptive field: how much each pixel of the picture moves one place of a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from allsight.backbones import Backbone

SHARES = (0.5, 0.9)


@dataclass(frozen=True)
class Field:
    """The field of the middle of one feature map.

    Args:
        stage: From 1.
        stride: Pixels of the picture from cell to cell.
        center_yx_px: Pixel on which the place is centered.
        strength: Root mean square derivative of the place's features by the pixel, of pictures, features and
            colours; the largest is 1.
        side_px: Share of the whole strength -> side of the smallest square around the center that holds it;
            0 where a map gives no gradient.
    """

    stage: int
    stride: int
    center_yx_px: tuple[int, int]
    strength: Float64[np.ndarray, "h w"]
    side_px: dict[float, int]


def effective_receptive_field(
    backbone: Backbone, images: Sequence[Float[Tensor, "3 h w"]], *, probes: int = 4, seed: int = 0
) -> list[Field]:
    """One field for every feature map, over pictures of one size.

    Each probe asks for the gradient of a sum of the middle's features with random signs: the mean of its
    squares is that of all features, while a plain sum says nothing after a layer norm, which takes the mean
    away.

    Args:
        backbone: In evaluation mode, not prepared for inference.
        images: Normalised pictures.
        probes: Draws of signs a picture; more give smoother fields.
        seed: Of the signs.

    Source: Luo et al., Understanding the Effective Receptive Field, arXiv:1701.04128; InternImage,
    arXiv:2211.05778, has the figure in its appendix.
    """
    signs = torch.Generator().manual_seed(seed)
    strides = [spec.stride for spec in backbone.feature_specs]
    sums = [torch.zeros(images[0].shape[1:], dtype=torch.float64) for _ in strides]
    for image in images:
        x = image[None].clone().requires_grad_()
        maps = backbone(x)
        for number, found in enumerate(maps):
            for probe in range(probes):
                middle = found[0, :, found.shape[2] // 2, found.shape[3] // 2]
                sign = torch.randint(0, 2, middle.shape, generator=signs).to(middle) * 2 - 1
                is_last = number == len(maps) - 1 and probe == probes - 1
                (gradient,) = torch.autograd.grad((middle * sign).sum(), x, retain_graph=not is_last)
                sums[number] += gradient[0].double().square().sum(0).cpu()
    fields = []
    for number, (stride, total) in enumerate(zip(strides, sums, strict=True)):
        strength = total.sqrt().numpy()
        strength = strength / max(float(strength.max()), 1e-30)
        height, width = -(-strength.shape[0] // stride), -(-strength.shape[1] // stride)
        center = (height // 2 * stride, width // 2 * stride)
        fields.append(Field(number + 1, stride, center, strength, _sides(strength, center)))
    return fields


def _sides(strength: Float64[np.ndarray, "h w"], center: tuple[int, int]) -> dict[float, int]:
    """Share -> side of the square that holds it."""
    y, x = np.indices(strength.shape)
    distance = np.maximum(abs(y - center[0]), abs(x - center[1]))
    held = np.bincount(distance.ravel(), weights=strength.ravel()).cumsum()
    if held[-1] <= 0:
        return dict.fromkeys(SHARES, 0)
    return {share: 2 * int(np.searchsorted(held, share * held[-1])) + 1 for share in SHARES}
