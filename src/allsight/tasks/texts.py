"""What tasks with texts share: the tokenizer, texts as ids of one length, and the loss of a likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from allsight.config import Config
from allsight.data.text import Tokenizer
from allsight.data.transforms import Compose, RandomResizedCrop, Resize
from allsight.objectives import boltzmann_loss
from allsight.tasks.base import Reader, Split, Task, Transform
from allsight.tasks.names import encode_text, open_tokenizer
from allsight.types import DataError, Sample, Text


class TextSettings(Config):
    """Settings of tasks with texts and, mostly, pictures."""

    tokenizer: str = "tokenizer.json"
    """The `tokenizer.json`, relative to `data.root`; all tasks of a run share one."""
    max_tokens: int = Field(default=64, ge=1)
    """Tokens of a text, its end included."""
    long_texts: Literal["refuse", "cut"] = "refuse"
    """A longer text is refused (the sample counts as one that cannot be used), or cut."""
    size_px: int = Field(default=224, ge=1)
    """Side of the square picture that the model sees; the aspect is not kept, so that nothing is lost."""
    min_scale: float = Field(default=1.0, gt=0, le=1)
    """Smallest share of a picture's area that training crops keep; 1 takes whole pictures."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over the candidates."""
    temperature: str = ""
    """Name of the model's temperature; empty is the task's own."""


class TextTask(Task):
    """Base of tasks whose texts one tokenizer reads; their Config is also a `TextSettings`."""

    @property
    def tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.config.tokenizer, self.root)

    def reader(self, split: Split) -> Reader:
        return self.open_data(split)


class CaptionedTask(TextTask):
    """Base of tasks on pictures with captions, one of which is the input `text`; there is none to predict."""

    def transform(self, split: Split) -> Transform:
        config = self.config
        if split == "predict":
            return Compose(*picture_steps(config, split))
        encoded = Encoded("text", self.tokenizer, config.max_tokens, config.long_texts == "cut")
        return Compose(PickCaption(split == "train"), *picture_steps(config, split), encoded)


@dataclass(frozen=True)
class Encoded:
    """Gives a text of a sample its ids, with the end behind them.

    Args:
        name: The input it is.
        cut: Cut longer texts in place of refusing them.
    Raises:
        DataError: No text, or more tokens than `max_tokens`.
    """

    name: str
    tokenizer: Tokenizer
    max_tokens: int
    cut: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        text = sample.inputs.get(self.name)
        if not isinstance(text, Text):
            raise DataError(f"{sample.id}: no text '{self.name}'; it has {sorted(sample.inputs)}", sample.id)
        ids = encode_text(text.string, self.tokenizer, self.max_tokens, cut=self.cut, id=sample.id)
        return replace(sample, inputs={**sample.inputs, self.name: replace(text, tokens=ids)})


@dataclass(frozen=True)
class PickCaption:
    """Makes one of a picture's captions the input `text`: a random one in training, else the first.

    Raises:
        DataError: The sample has no captions.
    """

    at_random: bool

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        captions = sample.targets.get("captions", ())
        if not captions:
            raise DataError(f"{sample.id}: no captions; it has {sorted(sample.targets)}", sample.id)
        number = int(rng.integers(len(captions))) if self.at_random else 0
        return replace(sample, inputs={**sample.inputs, "text": Text(captions[number])})


def picture_steps(settings: Any, split: Split) -> list[Transform]:
    """How pictures become squares."""
    if split == "train" and settings.min_scale < 1:
        return [RandomResizedCrop(settings.size_px, area=(settings.min_scale, 1.0))]
    return [Resize(settings.size_px)]


def padded(
    samples: Sequence[Sample], name: str, tokenizer: Tokenizer, length: int
) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """The ids of the samples' texts, filled up to the length of the settings, and where they are."""
    rows = []
    for sample in samples:
        text = sample.inputs[name]
        assert isinstance(text, Text)
        assert text.tokens is not None
        rows.append(text.tokens)
    return tokenizer.pad(rows, length)


def likelihood_loss(
    outputs: Mapping[str, Any], *, label_smoothing: float = 0.0
) -> dict[str, Float[Tensor, ""]]:
    """`likelihood`: -log P of the right candidates; beside it what the model's experts cost."""
    loss = boltzmann_loss(outputs["logits"], outputs["labels"], label_smoothing=label_smoothing)
    return {"likelihood": loss, **outputs.get("penalties", {})}
