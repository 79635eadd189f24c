"""Retrieval among texts: which answer belongs to a question, and which question to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from allsight.data.transforms import Compose
from allsight.tasks.base import Split, Transform
from allsight.tasks.pairs import PairTask
from allsight.tasks.texts import QuestionAndAnswer, padded, pair_targets
from allsight.types import Batch, Modality, Question, Sample, Segment, Text


class TextRetrieval(PairTask):
    """Questions (input `question`, else `text`) and what belongs to them (first of the target `answers`)."""

    ways = ("to_answer", "to_question")
    verbs = ("retrieve",)

    class Config(PairTask.Config):
        pass

    config: Config

    @property
    def reads(self) -> tuple[str, ...]:
        return ("question",)

    def transform(self, split: Split) -> Transform:
        steps = [QuestionAndAnswer(split), self.encoded("question")]
        return Compose(*steps) if split == "predict" else Compose(*steps, self.encoded("text"))

    def query_segment(self, batch: Batch) -> Segment:
        return Segment("text", batch.inputs["question"], batch.inputs["is_question"])

    def query_sample(self, thing: Modality, question: Question) -> Sample:
        assert isinstance(thing, Text)
        return self.prepared(replace(question, seen=None, text=thing))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        words, is_word = padded(samples, "question", self.tokenizer, self.config.max_tokens)
        inputs = {"question": words, "is_question": is_word}
        return Batch(self.name, tuple(s.id for s in samples), inputs, pair_targets(samples, self))
