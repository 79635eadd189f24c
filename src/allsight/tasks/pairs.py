"""Tasks on things that belong together: each asks for the other, among those of its group."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allsight.config import ConfigError
from allsight.objectives import boltzmann_loss
from allsight.tasks.asking import ID, Asked, check_lengths, notes_of
from allsight.tasks.base import Task
from allsight.tasks.metrics import RetrievalScores
from allsight.tasks.texts import TextSettings, TextTask, padded
from allsight.types import (
    Answer,
    Batch,
    ClassScores,
    InBatch,
    Modality,
    Outputs,
    PairAnswer,
    Query,
    Question,
    Sample,
    Segment,
    Text,
    kind_of,
)

_AT_ONCE = 64
"""Candidates that go through the model together when a user asks."""


class PairTask(TextTask):
    """Base of retrieval: a subclass says what asks for the text of each row.

    Targets of batches are `words` and `is_word`, the text that belongs to each row, and `texts`. Rows of a
    group with the same text are no negatives of each other, nor are those of the queue. Answers are
    `PairAnswer`; scores compare all validation samples.
    """

    ways: ClassVar[tuple[str, str]] = ("to_text", "to_image")
    """Names of the two directions."""
    verbs = ("retrieve", "classify")

    class Config(Task.Config, TextSettings):
        group_size: int = 64
        label_smoothing: float = 0.1
        queue: int = Field(default=0, ge=0)
        """Pairs of earlier steps, of all ranks, that are further negatives; 0: none."""

    def query_segment(self, batch: Batch) -> Segment:
        """What asks for the text of each row."""
        raise NotImplementedError(f"{type(self).__name__} has no query_segment")

    def query_sample(self, thing: Modality, question: Question) -> Sample:
        """The sample of something on the asking side, as the transform of predictions leaves it."""
        return self.prepared(question, seen=thing)

    @property
    def queue(self) -> int:
        """Length of the queue that the model keeps for this task."""
        return self.config.queue

    def cast(self, batch: Batch) -> Query:
        targets: tuple[Segment, ...] = ()
        if "words" in batch.targets:
            targets = (Segment("text", batch.targets["words"], batch.targets["is_word"]),)
        return Query((self.query_segment(batch),), InBatch(targets), temperature=self.config.temperature)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        losses = {}
        for way, name in zip(self.ways, ("logits", "logits_back"), strict=True):
            losses[way] = boltzmann_loss(
                outputs[name],
                outputs["labels"],
                label_smoothing=self.config.label_smoothing,
                excluded=outputs.get("excluded"),
            )
        return {**losses, **outputs.get("penalties", {})}

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
        return RetrievalScores(self.ways)

    def main_metric(self) -> str:
        return "mean_recall"

    def misfit(self, question: Question) -> str:
        asking = {"image": "a picture", "video": "a clip"}.get(self.reads[0], "a text")
        if question.candidates is None:
            seen = question.seen
            fits = seen is not None and question.text is not None and kind_of(seen) == asking
            return "" if fits else f"compares {asking} with candidates"
        given = [kind_of(each) for each in (question.seen, question.text) if each is not None]
        found = (given, {kind_of(each) for each in question.candidates})
        fits = found in (([asking], {"a text"}), (["a text"], {asking}))
        return "" if fits else f"finds the text of {asking} among texts, or {asking} of a text"

    def ask(self, question: Question) -> Asked:
        why_not = self.misfit(question)
        if why_not:
            raise ConfigError(f"task '{self.name}' {why_not}; got {question.shape}")
        check_lengths(question, self)
        task = self.as_asked(question)
        assert isinstance(task, PairTask)
        given = [each for each in (question.seen, question.text) if each is not None]
        pairs = [(given[:1], given[1:])]
        if question.candidates is not None:
            parts = [
                question.candidates[first : first + _AT_ONCE]
                for first in range(0, len(question.candidates), _AT_ONCE)
            ]
            is_text = isinstance(question.candidates[0], Text)
            pairs = [(given, part) if is_text else (part, given) for part in parts]
        queries, notes = [], {}
        for asking, texts in pairs:
            query, found = task.paired(asking, texts, question)
            queries.append(query)
            notes |= dict.fromkeys(found)
        return Asked(tuple(queries), _Compared(self.name, question), tuple(notes))

    def paired(
        self, asking: Sequence[Any], texts: Sequence[Any], question: Question
    ) -> tuple[Query, tuple[str, ...]]:
        """A query for things and texts of any two numbers, and what was left out of them."""
        samples = [self.query_sample(each, question) for each in asking]
        targets = [self.text_sample(each) for each in texts]
        words, is_word = padded(targets, "text", self.tokenizer, self.config.max_tokens)
        segment = self.query_segment(self.collate(samples))
        among = InBatch((Segment("text", words, is_word),))
        query = Query((segment,), among, temperature=self.config.temperature)
        return query, notes_of([*samples, *targets])

    def text_sample(self, text: Text) -> Sample:
        """The sample of a text that is asked for."""
        return self.encoded("text")(Sample(ID, {"text": text}), np.random.default_rng(0))


@dataclass(frozen=True)
class _Compared:
    """From features to an answer: how similar two things are, or how likely each candidate is."""

    task: str
    question: Question

    def __call__(self, outputs: Sequence[Outputs]) -> Answer:
        question, first = self.question, outputs[0]
        if question.candidates is None:
            query, target = (first[name][0].float().cpu().numpy() for name in ("queries", "targets"))
            return PairAnswer(ID, self.task, query, target, question.text.string if question.text else "")
        cosines = [
            (F.normalize(each["queries"], dim=-1) @ F.normalize(each["targets"], dim=-1).T).flatten()
            for each in outputs
        ]
        scores = (first["scale"] * torch.cat(cosines)).float().softmax(0).cpu().numpy()
        return ClassScores(ID, self.task, scores, question.names)
