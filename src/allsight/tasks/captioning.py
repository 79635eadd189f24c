"""Captioning: what a text says of a picture, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allsight.tasks.base import Task
from allsight.tasks.metrics import CaptionScores
from allsight.tasks.texts import (
    CaptionedTask,
    TextSettings,
    likelihood_loss,
    padded,
    seen,
    stack_seen,
)
from allsight.tasks.writing import continuation, written
from allsight.types import Answer, Batch, Query, Sample, Segment, TextAnswer, Vocabulary


class Captioning(CaptionedTask):
    """A text for a picture or clip. Batches hold `image` (`video`) and, where known, the target `words` with
    `is_word`.

    The loss is a mean over words, ends included. In evaluation the model writes; answers are `TextAnswer`.
    """

    verbs = ("caption",)

    counted: ClassVar[tuple[str, ...]] = ("likelihood",)

    class Config(Task.Config, TextSettings):
        beam: int = Field(default=1, ge=1)
        """Texts followed at a time in evaluation."""
        length_penalty: float = 0.0
        """Longer texts are preferred: log-probability / length ** length_penalty."""

    config: Config

    @property
    def reads(self) -> tuple[str, ...]:
        return ("video" if self.config.num_frames else "image",)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        targets: dict[str, Any] = {}
        if all("text" in sample.inputs for sample in samples):
            words, is_word = padded(samples, "text", self.tokenizer, self.config.max_tokens)
            captions = tuple(tuple(sample.targets.get("captions", ())) for sample in samples)
            targets = {"words": words, "is_word": is_word, "captions": captions}
        return Batch(self.name, tuple(s.id for s in samples), stack_seen(samples, self.config), targets)

    def cast(self, batch: Batch) -> Query:
        config = self.config
        how = continuation(
            self.tokenizer, config.max_tokens, beam=config.beam, length_penalty=config.length_penalty
        )
        words, mask, labels = batch.slots.new_empty(len(batch), 0), None, None
        if "words" in batch.targets:
            words, mask = batch.targets["words"], batch.targets["is_word"]
            labels = words.masked_fill(~mask, -100)
        text = Segment("text", words, mask, causal=True)
        return Query((seen(batch), text), Vocabulary(), 1, labels, config.temperature, how)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return likelihood_loss(outputs, label_smoothing=self.config.label_smoothing)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"likelihood": float(batch.targets["is_word"].sum())}

    def decode(self, outputs: dict[str, Any], batch: Batch) -> list[Answer]:
        return written(outputs, batch.ids, self.name, self.tokenizer)

    def truth(self, batch: Batch) -> list[Answer]:
        captions = batch.targets["captions"]
        return [TextAnswer(id, self.name, texts[0]) for id, texts in zip(batch.ids, captions, strict=True)]

    def metric(self) -> CaptionScores:
        return CaptionScores()

    def main_metric(self) -> str:
        return "cider_d"
