"""A task that needs no data: in which of eight directions do the stripes run?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from allsight.tasks.base import Task
from allsight.types import Batch, Sample

CLASSES, SIDE_PX = 8, 16


class Stripes(Task):
    """Which of eight directions do the stripes run in? Made from the index alone; `image` is normalised."""

    class Config(Task.Config):
        pass

    def reader(self, split: str) -> Pictures:
        return Pictures()

    def collate(self, samples: list[Sample]) -> Batch:
        pictures = torch.stack([sample.targets["picture"] for sample in samples])
        labels = torch.tensor([sample.targets["label"] for sample in samples])
        return Batch(self.name, tuple(s.id for s in samples), {"image": pictures}, {"label": labels})

    def head(self, features: Any) -> nn.Module:
        return Pool(features[-1].channels)

    def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": nn.functional.cross_entropy(outputs, batch.targets["label"])}


class Pictures:
    """As many samples as any run here sees."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> Sample:
        return stripes(index)


class Pool(nn.Module):
    """Mean over the pixels and a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, CLASSES)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.linear(maps[-1].mean(dim=(2, 3)))


def stripes(index: int) -> Sample:
    """Sample `index`: stripes of a random width and phase in direction `index % 8`, in noise."""
    generator = torch.Generator().manual_seed(index)
    label = index % CLASSES
    width, phase = (float(v) for v in torch.rand(2, generator=generator))
    y, x = torch.meshgrid(*[torch.arange(SIDE_PX) - SIDE_PX / 2] * 2, indexing="ij")
    angle = math.pi * label / CLASSES
    along = x * math.cos(angle) + y * math.sin(angle)
    wave = torch.sin(along * (0.8 + 0.8 * width) + 2 * math.pi * phase)
    picture = wave + 0.3 * torch.randn(3, SIDE_PX, SIDE_PX, generator=generator)
    return Sample(str(index), {}, {"picture": picture, "label": label})
