"""Which label fits a text, or two of them: sentiment, entailment, paraphrase."""

from __future__ import annotations

from collections.abc import Sequence

from allsight.data.transforms import Compose
from allsight.tasks.base import Split, Transform
from allsight.tasks.naming import NamingTask
from allsight.tasks.texts import padded
from allsight.types import Batch, Sample, Segment


class TextClassification(NamingTask):
    """Texts (input `text`; with `pairs` also `question`, before it) among labels in words, such as Yes/No.

    Batches hold `words` and `is_word` (`question` and `is_question`). See `NamingTask`.
    """

    class Config(NamingTask.Config):
        pairs: bool = False
        """Whether samples have two texts: GLUE's sentence pairs."""

    config: Config

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def transform(self, split: Split) -> Transform:
        first = [self.encoded("question")] if self.config.pairs else []
        return Compose(*first, self.encoded("text"), *self.labelled(split))

    def segments(self, batch: Batch) -> tuple[Segment, ...]:
        text = Segment("text", batch.inputs["words"], batch.inputs["is_word"])
        if not self.config.pairs:
            return (text,)
        return (Segment("text", batch.inputs["question"], batch.inputs["is_question"]), text)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        length, inputs = self.config.max_tokens, {}
        for name, key in (("text", "word"), ("question", "question"))[: 1 + self.config.pairs]:
            words, is_word = padded(samples, name, self.tokenizer, length)
            inputs |= {"words" if key == "word" else key: words, f"is_{key}": is_word}
        return Batch(self.name, tuple(s.id for s in samples), inputs, self.label_targets(samples))
