"""Feature pyramid: maps of several strides with one width, each knowing the coarser ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FPN(nn.Module):
    """A 1x1 convolution per map, sums from coarse to fine, a 3x3 convolution per result.

    Args:
        in_channels: Widths of the maps given, fine to coarse.
        channels: Width of all results.
        levels: How many maps to return, from the finest on. Fewer than given: the coarser ones only feed the
            finer. More: each further one halves the last by a 3x3 convolution, the second and later ones
            after a ReLU.
    Raises:
        ValueError: No maps.

    Source: Feature Pyramid Networks, arXiv:1612.03144; extra levels as BEVFormer has them
    (open-mmlab/mmdetection:mmdet/models/necks/fpn.py with add_extra_convs="on_output").
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, levels: int) -> None:
        super().__init__()
        if not in_channels or levels < 1:
            raise ValueError(f"FPN: expected maps and levels >= 1, got {tuple(in_channels)} and {levels}")
        self.levels = levels
        plain = len(in_channels)
        lateral = [nn.Conv2d(width, channels, 1) for width in in_channels]
        output = [nn.Conv2d(channels, channels, 3, 1 if i < plain else 2, 1) for i in range(levels)]
        for conv in (*lateral, *output):
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        self.lateral, self.output = nn.ModuleList(lateral), nn.ModuleList(output)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> tuple[Float[Tensor, "b c _ _"], ...]:
        """Compute the maps, fine to coarse."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            finer = merged[level - 1]
            merged[level - 1] = finer + F.interpolate(merged[level], size=finer.shape[2:], mode="nearest")
        results = []
        for level, conv in enumerate(self.output):
            if level < len(merged):
                results.append(conv(merged[level]))
            else:
                last = results[-1]
                results.append(conv(last if level == len(merged) else F.relu(last)))
        return tuple(results)
