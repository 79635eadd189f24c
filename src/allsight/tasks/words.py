"""Tasks that name words of a text: what they share."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from allsight.tasks.base import Task
from allsight.tasks.metrics import WordScores
from allsight.tasks.texts import TextSettings, TextTask, likelihood_loss
from allsight.types import Answer, Batch, WordsAnswer


class WordsTask(TextTask):
    """Base of tasks on words at places of a text.

    Batches hold `words` and `is_word`, and the target `labels`, -100 where nothing is asked. The loss is a
    mean over the words asked for; answers are the likeliest word at each of their places.
    """

    counted: ClassVar[tuple[str, ...]] = ("likelihood",)

    class Config(Task.Config, TextSettings):
        pass

    def asked(self, batch: Batch) -> Bool[Tensor, "b t"]:
        """Where words are asked for in a batch without labels."""
        return batch.inputs["is_word"]

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return likelihood_loss(outputs, label_smoothing=self.config.label_smoothing)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"likelihood": float((batch.targets["labels"] != -100).sum())}

    def decode(self, outputs: dict[str, Any], batch: Batch) -> list[Answer]:
        likelihood, words = outputs["logits"].detach().float().softmax(-1).max(-1)
        return self._answers(words, batch, likelihood)

    def truth(self, batch: Batch) -> list[Answer]:
        return self._answers(batch.targets["labels"], batch)

    def _answers(
        self, words: Int64[Tensor, "b t"], batch: Batch, likelihood: Float[Tensor, "b t"] | None = None
    ) -> list[Answer]:
        asked = batch.targets["labels"] != -100 if "labels" in batch.targets else self.asked(batch)
        answers: list[Answer] = []
        for row, id in enumerate(batch.ids):
            tokens = words[row][asked[row]]
            scores = () if likelihood is None else tuple(likelihood[row][asked[row]].tolist())
            text = self.tokenizer.decode(tokens)
            answers.append(WordsAnswer(id, self.name, text, tuple(tokens.tolist()), scores))
        return answers

    def metric(self) -> WordScores:
        return WordScores()

    def main_metric(self) -> str:
        return "accuracy"
