"""Training on one batch that was made ahead, so that only the loop around the network is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from allsight.config import Mixture, replace
from allsight.data.loader import MetaDataloader
from allsight.data.workers import InProcess
from allsight.engine.config import EvalConfig, RunConfig
from allsight.engine.optim import AdamW
from allsight.engine.schedule import Constant
from allsight.engine.trainer import Trainer
from allsight.models.base import Model
from allsight.tasks import Classification
from allsight.types import Batch, DataError

CLASSES = 10


class MadeAhead(Classification):
    """Classification of pictures that nobody reads: its only batch is handed to the loader."""

    class Config(Classification.Config):
        data: str = "imagefolder:none"
        num_classes: int | None = CLASSES

    def reader(self, split: str) -> NoPictures:
        return NoPictures()


class NoPictures:
    """A thousand samples of ten classes, none of which can be opened."""

    classes = tuple(map(str, range(CLASSES)))

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Any:
        raise DataError(f"sample {index} cannot be read: only its batch is there", str(index))


class SameBatch(InProcess):
    """Keeps all promises of a workforce, and hands out one batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self._orders, self._next = batch, {}, 0

    def result(self, ticket: int) -> Batch:
        self.forget(ticket)
        return self._batch


def run_of(model: Model.Config, batch_size: int, size_px: int, **changes: Any) -> RunConfig:
    """An endless run on one batch, with all that a long run has: clipping, an average of the weights."""
    config = RunConfig(
        name="made_ahead",
        model=model,
        tasks=Mixture(a=MadeAhead.Config(batch_size=batch_size, size_px=size_px)),
        optim=AdamW.Config(clip_norm=5.0, ema_decay=0.999),
        schedule=Constant.Config(steps=10**6),
        eval=EvalConfig(pictures=0),
    )
    return replace(config, changes)


def batch_of(rows: int, size_px: int) -> Batch:
    """A batch of noise."""
    images = torch.randint(0, 256, (rows, 3, size_px, size_px), dtype=torch.uint8)
    return Batch(
        "a", tuple(map(str, range(rows))), {"image": images}, {"label": torch.arange(rows) % CLASSES}
    )


class TrainerOnOneBatch(Trainer):
    """The trainer itself, its loader's data replaced.

    Args:
        batch: What this rank trains on in each step.
    """

    def __init__(self, config: RunConfig, batch: Batch, *, folder: Path | None, resume: bool = False) -> None:
        super().__init__(config, folder=folder, resume=resume)
        self._batch = batch

    def _make_loader(self) -> MetaDataloader:
        loader = super()._make_loader()
        loader.workforce = SameBatch(self._batch)
        return loader
