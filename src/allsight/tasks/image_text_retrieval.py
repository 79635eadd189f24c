"""Retrieval: which text belongs to a picture, and which picture to a text."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from allsight.objectives import boltzmann_loss
from allsight.tasks.base import Task
from allsight.tasks.classification import stack_images
from allsight.tasks.metrics import RetrievalScores
from allsight.tasks.texts import CaptionedTask, TextSettings, padded
from allsight.types import Answer, Batch, InBatch, PairAnswer, Query, Sample, Segment


class ImageTextRetrieval(CaptionedTask):
    """Pictures and texts that belong together; the other rows of a group are the negatives, both ways.

    Batches hold `image`, and the targets `words`, `is_word` and `texts`. Rows of a group with the same text
    are no negatives of each other. Answers are `PairAnswer`; scores compare all validation samples.
    """

    class Config(Task.Config, TextSettings):
        group_size: int = 64
        label_smoothing: float = 0.1

    config: Config

    def collate(self, samples: Sequence[Sample]) -> Batch:
        targets: dict[str, Any] = {}
        if all("text" in sample.inputs for sample in samples):
            words, is_word = padded(samples, "text", self.tokenizer, self.config.max_tokens)
            texts = tuple(sample.inputs["text"].string for sample in samples)  # type: ignore[union-attr]
            targets = {"words": words, "is_word": is_word, "texts": texts}
        return Batch(self.name, tuple(s.id for s in samples), {"image": stack_images(samples)}, targets)

    def cast(self, batch: Batch) -> Query:
        targets: tuple[Segment, ...] = ()
        if "words" in batch.targets:
            targets = (Segment("text", batch.targets["words"], batch.targets["is_word"]),)
        image = Segment("image", batch.inputs["image"])
        return Query((image,), InBatch(targets), temperature=self.config.temperature)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        def towards(name: str) -> Tensor:
            return boltzmann_loss(
                outputs[name],
                outputs["labels"],
                label_smoothing=self.config.label_smoothing,
                excluded=outputs.get("excluded"),
            )

        ways = {"to_text": towards("logits"), "to_image": towards("logits_back")}
        return {**ways, **outputs.get("penalties", {})}

    def decode(self, outputs: dict[str, Any], batch: Batch) -> list[Answer]:
        queries = outputs["queries"].detach().float().cpu().numpy()
        targets = (
            outputs["targets"].detach().float().cpu().numpy() if "targets" in outputs else [None] * len(batch)
        )
        texts = batch.targets.get("texts", ("",) * len(batch))
        rows = zip(batch.ids, queries, targets, texts, strict=True)
        return [PairAnswer(id, self.name, query, target, text) for id, query, target, text in rows]

    def truth(self, batch: Batch) -> list[Answer]:
        texts = batch.targets["texts"]
        # Features that only equal texts share: a model that was right would tell all others apart.
        rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=64) for text in texts]
        pairs = zip(batch.ids, (row.astype(np.float32) for row in rows), texts, strict=True)
        return [PairAnswer(id, self.name, row, row, text) for id, row, text in pairs]

    def metric(self) -> RetrievalScores:
        return RetrievalScores()

    def main_metric(self) -> str:
        return "mean_recall"
