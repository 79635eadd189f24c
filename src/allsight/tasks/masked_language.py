"""Masked language: which words were taken out of a text, with its picture or without."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from allsight.data.text import Tokenizer
from allsight.data.transforms import Compose
from allsight.tasks.base import Split, Task, Transform
from allsight.tasks.classification import stack_images
from allsight.tasks.metrics import WordScores
from allsight.tasks.names import encode_text
from allsight.tasks.texts import PickCaption, TextSettings, TextTask, likelihood_loss, padded, picture_steps
from allsight.types import Answer, Batch, DataError, Query, Sample, Segment, Text, Vocabulary, WordsAnswer


class MaskedLanguage(TextTask):
    """Whole words of a text are taken out; the model says which.

    Texts are the input `text` of samples, or captions; those that come with blanks (`___`) and the target
    `answers`, a word for each blank in turn, are taken as they are. Batches hold `words`, `is_word` (and
    `image`), and the target `labels`, -100 where nothing was taken out. The loss is a mean over the tokens
    taken out.
    """

    counted: ClassVar[tuple[str, ...]] = ("likelihood",)

    class Config(Task.Config, TextSettings):
        with_image: bool = False
        """Whether the model also sees the picture that the text belongs to."""
        share_masked: float = Field(default=0.15, gt=0, le=1)
        """Share of words taken out, at least one. Of those 80 % become <SPE>, 10 % random, 10 % stay."""

    config: Config

    def transform(self, split: Split) -> Transform:
        config = self.config
        steps: list[Transform] = picture_steps(config, split) if config.with_image else []
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
            inputs["image"] = stack_images(samples)
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
        before = (Segment("image", batch.inputs["image"]),) if self.config.with_image else ()
        labels, temperature = batch.targets.get("labels"), self.config.temperature
        return Query((*before, text), Vocabulary(), len(before), labels, temperature)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return likelihood_loss(outputs, label_smoothing=self.config.label_smoothing)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"likelihood": float((batch.targets["labels"] != -100).sum())}

    def decode(self, outputs: dict[str, Any], batch: Batch) -> list[Answer]:
        return self._answers(outputs["logits"].argmax(-1), batch)

    def truth(self, batch: Batch) -> list[Answer]:
        return self._answers(batch.targets["labels"], batch)

    def _answers(self, words: Int64[Tensor, "b t"], batch: Batch) -> list[Answer]:
        asked = batch.inputs["words"] == self.tokenizer.spe_id
        if "labels" in batch.targets:
            asked = batch.targets["labels"] != -100
        rows = [row[where] for row, where in zip(words, asked, strict=True)]
        return [
            WordsAnswer(id, self.name, self.tokenizer.decode(row), tuple(row.tolist()))
            for id, row in zip(batch.ids, rows, strict=True)
        ]

    def metric(self) -> WordScores:
        return WordScores()

    def main_metric(self) -> str:
        return "accuracy"


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
        parts = [self.tokenizer.encode(part) for part in _BLANK.split(text.string)]
        ids = torch.cat([parts[0], *(t for p in parts[1:] for t in (blank, p))])
        if len(ids) >= self.max_tokens and not self.cut:
            encode_text(text.string, self.tokenizer, self.max_tokens, id=sample.id)
        ids = torch.cat([ids[: self.max_tokens - 1], torch.tensor([self.tokenizer.eos_id])])
        return replace(sample, inputs={**sample.inputs, "text": replace(text, tokens=ids)})


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
        if "text" not in sample.inputs:
            sample = PickCaption(self.at_random)(sample, rng)
        if not self.at_random:
            rng = np.random.default_rng(zlib.crc32(sample.id.encode()))
        text = sample.inputs["text"]
        assert isinstance(text, Text)
        if "___" in text.string and "answers" in sample.targets:
            return self._filled_in(sample, text)
        # Refuses or cuts the text as a whole; then words are taken one by one, to know where they are.
        whole = encode_text(text.string, self.tokenizer, self.max_tokens, cut=self.cut, id=sample.id)
        words = [self.tokenizer.encode(word) for word in re.findall(r"\s*\S+", text.string)]
        words = [word for word in words if len(word)]
        if not words:
            raise DataError(f"{sample.id}: a text without words", sample.id)
        number = np.repeat(np.arange(len(words)), [len(word) for word in words])[: len(whole) - 1]
        ids = torch.cat(words)[: len(number)]
        count = max(1, round(self.share * (int(number[-1]) + 1)))
        taken = torch.from_numpy(np.isin(number, rng.permutation(int(number[-1]) + 1)[:count]))
        labels = torch.where(taken, ids, -100)
        kind = torch.from_numpy(rng.random(len(ids)))
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
        end = len(encode_text(whole, self.tokenizer, self.max_tokens, cut=self.cut, id=sample.id)) - 1
        pieces = [(False, parts[0])]
        for word, part in zip(words, parts[1:], strict=True):
            pieces += [(True, word), (False, part)]
        tokens = [(is_taken, self.tokenizer.encode(piece)) for is_taken, piece in pieces]
        labels = torch.cat([torch.where(torch.tensor(is_taken), ids, -100) for is_taken, ids in tokens])[:end]
        kept = torch.cat([ids for _, ids in tokens])[:end]
        ids = torch.where(labels == -100, kept, self.tokenizer.spe_id)
        ids = torch.cat([ids, torch.tensor([self.tokenizer.eos_id])])
        inputs = {**sample.inputs, "text": replace(text, tokens=ids)}
        return replace(sample, inputs=inputs, targets={**sample.targets, "masked_labels": labels})
