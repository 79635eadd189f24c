"""Tasks that choose among names that are read: what they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allsight.config import ConfigError
from allsight.objectives import boltzmann_count
from allsight.tasks.asking import AskableTask
from allsight.tasks.base import Split, Task, Transform
from allsight.tasks.classification import CheckLabel
from allsight.tasks.metrics import ClassificationScores
from allsight.tasks.names import names_as_texts, on
from allsight.tasks.texts import TextSettings, TextTask, likelihood_loss
from allsight.types import Answer, Batch, ClassScores, Closed, Query, Sample, Segment


class NamingTask(TextTask):
    """Base of classification for generalists alone: what is named is compared with the names of all classes.

    A subclass says which `segments` are named. Answers are `ClassScores`.
    """

    counted: ClassVar[tuple[str, ...]] = ("likelihood",)
    verbs = ("classify",)

    class Config(Task.Config, TextSettings):
        names: tuple[str, ...] = ()
        """What the classes are called to the model, in their order, such as (terrible, great); empty: as the
        data set calls them."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self.given_classes:
            return self.given_classes
        found = tuple(getattr(self.reader("train"), "classes", ()))
        if not found:
            raise ConfigError(f"config.tasks.{self.name}.data: '{self.config.data}' has no classes")
        return found

    @cached_property
    def _names(self) -> Segment:
        names = self.config.names or tuple(name.replace("_", " ") for name in self.classes)
        if len(names) != len(self.classes):
            raise ConfigError(
                f"config.tasks.{self.name}.names: {len(names)} names for {len(self.classes)} classes"
            )
        return names_as_texts(names, self.tokenizer)

    def segments(self, batch: Batch) -> tuple[Segment, ...]:
        """What is named."""
        raise NotImplementedError(f"{type(self).__name__} has no segments")

    def among(self, candidates: tuple[str, ...]) -> AskableTask:
        return self.changed({"names": ()}, classes=candidates)

    def labelled(self, split: Split) -> list[Transform]:
        """The check that samples of `train` and `val` have a class."""
        return [] if split == "predict" else [CheckLabel(len(self.classes))]

    def label_targets(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The target `label` [b], where samples have one."""
        if not all("label" in sample.targets for sample in samples):
            return {}
        return {"label": torch.tensor([int(sample.targets["label"]) for sample in samples])}

    def cast(self, batch: Batch) -> Query:
        segments = self.segments(batch)
        names = Closed(self.key, (on(segments[0].content.device, self._names),))
        return Query(segments, names, None, batch.targets.get("label"), self.config.temperature)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return likelihood_loss(outputs, label_smoothing=self.config.label_smoothing)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"likelihood": boltzmann_count(batch.targets["label"])}

    def decode(self, outputs: dict[str, Any], batch: Batch) -> list[Answer]:
        rows = outputs["logits"].detach().float().softmax(-1).cpu().numpy()
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, rows, strict=True)
        ]

    def truth(self, batch: Batch) -> list[Answer]:
        rows = np.eye(len(self.classes), dtype=np.float32)[batch.targets["label"].cpu().numpy()]
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, rows, strict=True)
        ]

    def metric(self) -> ClassificationScores:
        return ClassificationScores((5,), len(self.classes), self.classes)

    def main_metric(self) -> str:
        return "top1"
