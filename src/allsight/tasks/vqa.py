"""Visual question answering: which of the known answers fits a question about a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allsight.config import ConfigError
from allsight.data.transforms import Compose
from allsight.objectives import boltzmann_count
from allsight.tasks.asking import AskableTask
from allsight.tasks.base import Split, Task, Transform
from allsight.tasks.metrics import VQAScores
from allsight.tasks.names import names_as_texts, on
from allsight.tasks.texts import (
    TextSettings,
    TextTask,
    likelihood_loss,
    padded,
    seen,
    stack_seen,
    visual_steps,
)
from allsight.types import Answer, Batch, ClassScores, Closed, Query, Sample, Segment


class VQA(TextTask):
    """A question about a picture, answered from a list.

    Batches hold `image` (or `video`), `words` and `is_word` of the question, and the targets `label` (-100:
    the answer is not in the list), `answers` (what each person said). Answers are `ClassScores` over the
    list.
    """

    counted: ClassVar[tuple[str, ...]] = ("likelihood",)
    verbs = ("answer",)

    class Config(Task.Config, TextSettings):
        num_answers: int = Field(default=3000, ge=2)
        """Longest list: the most frequent answers of the training data."""

    config: Config

    @property
    def classes(self) -> tuple[str, ...]:
        return self._answers

    @cached_property
    def _answers(self) -> tuple[str, ...]:
        """The answers to choose among; those given with the weights, else the frequent ones."""
        if self.given_classes:
            return self.given_classes
        reader = self.reader("train")
        if not hasattr(reader, "common_answers"):
            raise ConfigError(
                f"config.tasks.{self.name}.data: '{self.config.data}' has no questions with answers"
            )
        # Frequent ones first, those alike by name: a set's own order would change from run to run.
        counted = Counter(reader.common_answers()).items()  # type: ignore[attr-defined]
        ranked = sorted(counted, key=lambda item: (-item[1], item[0]))
        return tuple(answer for answer, _ in ranked[: self.config.num_answers])

    @cached_property
    def _candidates(self) -> Segment:
        return names_as_texts(self.classes, self.tokenizer)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("video" if self.config.num_frames else "image", "question")

    def among(self, candidates: tuple[str, ...]) -> AskableTask:
        return self.changed({}, classes=candidates)

    @property
    def max_tokens(self) -> int:
        """Of a question; one more is the <SPE> that asks."""
        return max(1, self.config.max_tokens - 1)

    def transform(self, split: Split) -> Transform:
        return Compose(*visual_steps(self.config, split), self.encoded("question"))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        words, is_word = padded(samples, "question", self.tokenizer, self.config.max_tokens)
        inputs = {**stack_seen(samples, self.config), "words": words, "is_word": is_word}
        targets: dict[str, Any] = {}
        if all("answer" in sample.targets for sample in samples):
            place = {answer: number for number, answer in enumerate(self.classes)}
            labels = torch.tensor([place.get(sample.targets["answer"], -100) for sample in samples])
            targets = {"label": labels, "answers": tuple(sample.targets["answers"] for sample in samples)}
        return Batch(self.name, tuple(sample.id for sample in samples), inputs, targets)

    def cast(self, batch: Batch) -> Query:
        words, is_word = batch.inputs["words"], batch.inputs["is_word"]
        # The answer is read at a <SPE> between the question's words and its end, as in the release.
        is_end = is_word & ~F.pad(is_word, (0, 1))[:, 1:]
        question = Segment("text", words, is_word & ~is_end)
        asking, end = (
            Segment("text", words.new_full((len(batch), 1), token))
            for token in (self.tokenizer.spe_id, self.tokenizer.eos_id)
        )
        label = batch.targets.get("label")
        return Query(
            (seen(batch), question, asking, end),
            Closed(self.key, (on(words.device, self._candidates),)),
            read=2,
            labels=None if label is None else label[:, None],
            temperature=self.config.temperature,
        )

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return likelihood_loss(outputs, label_smoothing=self.config.label_smoothing)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"likelihood": boltzmann_count(batch.targets["label"])}

    def decode(self, outputs: dict[str, Any], batch: Batch) -> list[Answer]:
        scores = outputs["logits"][:, 0].detach().float().softmax(-1).cpu().numpy()
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, scores, strict=True)
        ]

    def truth(self, batch: Batch) -> list[Answer]:
        # An answer outside the list is nobody's truth: all zeros.
        numbers = torch.arange(len(self.classes), device=batch.targets["label"].device)
        rows = (batch.targets["label"][:, None] == numbers).float().cpu().numpy()
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, rows, strict=True)
        ]

    def metric(self) -> VQAScores:
        return VQAScores()

    def main_metric(self) -> str:
        return "accuracy"
