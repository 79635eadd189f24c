"""The task that is checked, with the few samples and batches that the checks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allsight.tasks.base import Reader, Split, Task
from allsight.types import Batch, FeatureSpec, Outputs, Sample

Answering = Callable[[Batch], Outputs]
"""A model, as far as checks need one: the outputs of a batch."""

_SPECS = (FeatureSpec(8, 4), FeatureSpec(12, 8), FeatureSpec(16, 16), FeatureSpec(20, 32))


class Fault(Exception):
    """What is wrong with the task, in one line."""


class NotApplicable(Exception):
    """Why a check has nothing to look at."""


class Subject:
    """A task and what it makes of its first samples.

    Args:
        task: The task.
        answering: Float64 outputs of a batch whose rows do not see each other; None builds the task's head on
            made-up feature maps of its pictures.
    """

    def __init__(self, task: Task, answering: Answering | None = None) -> None:
        self.task = task
        self._answering = answering
        self._readers: dict[str, Reader] = {}
        group = int(task.config.group_size)
        self.rows = 6 if group == 1 else 3 * group
        """Rows of the batches that are looked at; whole groups."""
        self.cut = 2 if group == 1 else group
        """Where they are split."""

    def reader(self, split: Split) -> Reader:
        if split not in self._readers:
            self._readers[split] = self.task.reader(split)
        return self._readers[split]

    def sample(self, split: Split, number: int) -> Sample:
        """A sample as the transform leaves it; numbers beyond the last begin again."""
        raw = self.reader(split)[number % len(self.reader(split))]
        return self.task.transform(split)(raw, np.random.default_rng(number))

    def samples(self, split: Split) -> list[Sample]:
        return [self.sample(split, number) for number in range(self.rows)]

    @cached_property
    def train(self) -> list[Sample]:
        return self.samples("train")

    @cached_property
    def val(self) -> list[Sample]:
        return self.samples("val")

    def batch(self, samples: Sequence[Sample]) -> Batch:
        return replace(self.task.collate(samples), group_size=self.task.config.group_size)

    def outputs(self, batch: Batch) -> Outputs:
        """What a model could say about the batch.

        Raises:
            NotApplicable: The task has no head, or its batches have no picture to make feature maps of.
        """
        if self._answering is not None:
            return self._answering(batch)
        if type(self.task).head is Task.head:
            served = "reads queries" if type(self.task).cast is not Task.cast else "is made for it"
            raise NotApplicable(f"it has no head, so a model that {served} is needed")
        image = batch.inputs.get("image")
        if not isinstance(image, Tensor) or image.ndim != 4:
            raise NotApplicable("its batches have no tensor 'image' [b, 3, h, w] to make feature maps of")
        return self.head(_made_up_features(image))

    @cached_property
    def head(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.task.head(_SPECS).double().eval()


def _made_up_features(image: Tensor) -> tuple[Tensor, ...]:
    """Feature maps that depend on each picture alone."""
    maps = []
    for number, spec in enumerate(_SPECS):
        weights = torch.from_numpy(
            np.random.default_rng(number).standard_normal((spec.channels, image.shape[1]))
        )
        pooled = F.avg_pool2d(image.double() / 255, spec.stride, ceil_mode=True)
        maps.append(torch.einsum("kc,bchw->bkhw", weights, pooled))
    return tuple(maps)


def named(value: Any) -> str:
    """A value's type, for messages."""
    return "None" if value is None else type(value).__name__
