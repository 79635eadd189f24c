"""Masked language: which words were taken out of a text, with its picture or without."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from allsight.data.text import Tokenizer
from allsight.data.transforms import Compose
from allsight.tasks.base import Split, Transform
from allsight.tasks.names import with_tokens
from allsight.tasks.texts import AnyText, padded, seen, stack_seen, visual_steps
from allsight.tasks.words import WordsTask
from allsight.types import Batch, DataError, Query, Question, Sample, Segment, Text, Vocabulary


class MaskedLanguage(WordsTask):
    """Whole words of a text are taken out; the model says which.

    Texts are the input `text` of samples, or captions; those that come with blanks (`___`) and the target
    `answers`, a word for each blank in turn, are taken as they are. Batches also hold `image` (or `video`)
    where the model is to see it.
    """

    verbs = ("fill",)

    class Config(WordsTask.Config):
        with_image: bool = False
        """Whether the model also sees the picture that the text belongs to."""
        share_masked: float = Field(default=0.15, gt=0, le=1)
        """Share of words taken out, at least one. Of those 80 % become <SPE>, 10 % random, 10 % stay."""

    config: Config

    @property
    def reads(self) -> tuple[str, ...]:
        seen_as = "video" if self.config.num_frames else "image"
        return (seen_as, "text") if self.config.with_image else ("text",)

    def misfit(self, question: Question) -> str:
        if question.text is not None and "___" not in question.text.string:
            return "names the words that ___ stands for in a text"
        return super().misfit(question)

    def transform(self, split: Split) -> Transform:
        config = self.config
        steps: list[Transform] = visual_steps(config, split) if config.with_image else []
        cut = config.long_texts == "cut"
        if split == "predict":
            return Compose(*steps, BlankWords(self.tokenizer, config.max_tokens, cut))
        mask = MaskWords(self.tokenizer, config.max_tokens, config.share_masked, cut, split == "train")
        return Compose(*steps, mask)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        length = self.config.max_tokens
        words, is_word = padded(samples, "text", self.tokenizer, length)
        inputs: dict[str, Any] = {"words": words, "is_word": is_word}
        if self.config.with_image:
            inputs |= stack_seen(samples, self.config)
        targets: dict[str, Any] = {}
        if all("masked_labels" in sample.targets for sample in samples):
            labels = torch.full_like(words, -100)
            for row, sample in enumerate(samples):
                given = sample.targets["masked_labels"]
                labels[row, : len(given)] = given
            targets = {"labels": labels}
        return Batch(self.name, tuple(s.id for s in samples), inputs, targets)

    def cast(self, batch: Batch) -> Query:
        text = Segment("text", batch.inputs["words"], batch.inputs["is_word"])
        before = (seen(batch),) if self.config.with_image else ()
        labels, temperature = batch.targets.get("labels"), self.config.temperature
        return Query((*before, text), Vocabulary(), len(before), labels, temperature)

    def asked(self, batch: Batch) -> Bool[Tensor, "b t"]:
        return batch.inputs["words"] == self.tokenizer.spe_id


_BLANK = re.compile(r"\s*___")


@dataclass(frozen=True)
class BlankWords:
    """For answers: `___` in a text is a word to be named. Without a text there is nothing to name.

    Raises:
        DataError: Too many tokens.
    """

    tokenizer: Tokenizer
    max_tokens: int
    cut: bool

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        text = sample.inputs.get("text", Text(""))
        assert isinstance(text, Text)
        blank = torch.tensor([self.tokenizer.spe_id])
        first, *rest = (self.tokenizer.encode(part) for part in _BLANK.split(text.string))
        ids = torch.cat([first, *(part for each in rest for part in (blank, each))])
        room = self.max_tokens - 1
        if len(ids) > room and not self.cut:
            with_tokens(text, self.tokenizer, self.max_tokens, id=sample.id)
        lost = max(0, len(ids) - room)
        ids = torch.cat([ids[:room], torch.tensor([self.tokenizer.eos_id])])
        return replace(sample, inputs={**sample.inputs, "text": replace(text, tokens=ids, cut=lost)})


@dataclass(frozen=True)
class MaskWords:
    """Takes words out of a text; in evaluation always the same ones of a sample.

    Raises:
        DataError: No text, or one without words or with too many tokens; blanks that are not as many as the
            answers.
    """

    tokenizer: Tokenizer
    max_tokens: int
    share: float
    cut: bool
    at_random: bool

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = AnyText("train" if self.at_random else "val")(sample, rng)
        if not self.at_random:
            rng = np.random.default_rng(zlib.crc32(sample.id.encode()))
        text = sample.inputs["text"]
        assert isinstance(text, Text)
        if "___" in text.string and "answers" in sample.targets:
            return self._filled_in(sample, text)
        # Refuses or cuts the text as a whole; then words are taken one by one, to know where they are.
        text = with_tokens(text, self.tokenizer, self.max_tokens, cut=self.cut, id=sample.id)
        assert text.tokens is not None
        words = [self.tokenizer.encode(word) for word in re.findall(r"\s*\S+", text.string)]
        words = [word for word in words if len(word)]
        if not words:
            raise DataError(f"{sample.id}: a text without words", sample.id)
        number = np.repeat(np.arange(len(words)), [len(word) for word in words])[: len(text.tokens) - 1]
        ids = torch.cat(words)[: len(number)]
        count = max(1, round(self.share * (int(number[-1]) + 1)))
        taken = torch.from_numpy(np.isin(number, rng.permutation(int(number[-1]) + 1)[:count]))
        labels = torch.where(taken, ids, -100)
        # One draw a word: parts of a taken word that stay would tell the rest.
        kind = torch.from_numpy(rng.random(int(number[-1]) + 1)[number])
        other = torch.from_numpy(rng.integers(self.tokenizer.vocab_size, size=len(ids)))
        seen = torch.where(kind < 0.8, self.tokenizer.spe_id, torch.where(kind < 0.9, other, ids))
        ids = torch.cat([torch.where(taken, seen, ids), torch.tensor([self.tokenizer.eos_id])])
        inputs = {**sample.inputs, "text": replace(text, tokens=ids)}
        return replace(sample, inputs=inputs, targets={**sample.targets, "masked_labels": labels})

    def _filled_in(self, sample: Sample, text: Text) -> Sample:
        """A text whose blanks are given: its answers are the words taken out."""
        answers, parts = sample.targets["answers"], _BLANK.split(text.string)
        gaps = [match.group().removesuffix("___") for match in _BLANK.finditer(text.string)]
        if len(answers) != len(gaps):
            raise DataError(
                f"{sample.id}: {len(gaps)} blanks in {text.string[:40]!r} and {len(answers)} answers; "
                "expected as many",
                sample.id,
            )
        words = [gap + answer for gap, answer in zip(gaps, answers, strict=True)]
        whole = parts[0] + "".join(word + part for word, part in zip(words, parts[1:], strict=True))
        filled = replace(text, string=whole)
        filled = with_tokens(filled, self.tokenizer, self.max_tokens, cut=self.cut, id=sample.id)
        assert filled.tokens is not None
        end = len(filled.tokens) - 1
        pieces = [(False, parts[0])]
        for word, part in zip(words, parts[1:], strict=True):
            pieces += [(True, word), (False, part)]
        tokens = [(is_taken, self.tokenizer.encode(piece)) for is_taken, piece in pieces]
        labels = torch.cat([torch.where(torch.tensor(is_taken), ids, -100) for is_taken, ids in tokens])[:end]
        kept = torch.cat([ids for _, ids in tokens])[:end]
        ids = torch.where(labels == -100, kept, self.tokenizer.spe_id)
        ids = torch.cat([ids, torch.tensor([self.tokenizer.eos_id])])
        inputs = {**sample.inputs, "text": replace(text, tokens=ids, cut=filled.cut)}
        return replace(sample, inputs=inputs, targets={**sample.targets, "masked_labels": labels})
