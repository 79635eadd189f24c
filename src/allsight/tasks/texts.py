"""What tasks with texts share: the tokenizer, texts as ids of one length, and the loss of a likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import Field
from torch import Tensor

from allsight.config import Config
from allsight.data.text import Tokenizer
from allsight.data.transforms import Compose, PickFrames, RandomResizedCrop, Resize, ResizeClip
from allsight.objectives import boltzmann_loss
from allsight.tasks.asking import AskableTask
from allsight.tasks.base import Reader, Split, Transform
from allsight.tasks.classification import stack_images
from allsight.tasks.names import open_tokenizer, with_tokens
from allsight.types import Batch, DataError, Sample, Segment, Text, Video


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
    num_frames: int = Field(default=0, ge=0)
    """Frames of a clip that the model sees; 0: it sees pictures."""
    min_scale: float = Field(default=1.0, gt=0, le=1)
    """Smallest share of a picture's area that training crops keep; 1 takes whole pictures."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over the candidates."""
    temperature: str = ""
    """Name of the model's temperature; empty is the task's own."""


class TextTask(AskableTask):
    """Base of tasks whose texts one tokenizer reads; their Config is also a `TextSettings`."""

    @property
    def max_tokens(self) -> int:
        return self.config.max_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.config.tokenizer, self.root)

    def reader(self, split: Split) -> Reader:
        return self.open_data(split)

    def encoded(self, name: str) -> Encoded:
        """The transform that gives an input of this name its ids."""
        return Encoded(name, self.tokenizer, self.max_tokens, self.config.long_texts == "cut")


class CaptionedTask(TextTask):
    """Base of tasks on pictures or clips with captions, one of which is the input `text`; there is none to
    predict."""

    def transform(self, split: Split) -> Transform:
        config = self.config
        if split == "predict":
            return Compose(*visual_steps(config, split))
        return Compose(PickCaption(split == "train"), *visual_steps(config, split), self.encoded("text"))


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
        encoded = with_tokens(text, self.tokenizer, self.max_tokens, cut=self.cut, id=sample.id)
        return replace(sample, inputs={**sample.inputs, self.name: encoded})


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


@dataclass(frozen=True)
class AnyText:
    """Makes sure that there is an input `text`: a caption where there is none, or nothing at all to predict.

    Raises:
        DataError: Neither a text nor captions.
    """

    split: Split

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "text" in sample.inputs:
            return sample
        if self.split == "predict":
            return replace(sample, inputs={**sample.inputs, "text": Text("")})
        return PickCaption(self.split == "train")(sample, rng)


@dataclass(frozen=True)
class QuestionAndAnswer:
    """Names the inputs `question` and `text`, of which there is none to predict.

    Raises:
        DataError: No question or no answer.
    """

    split: Split

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        inputs: dict[str, Any] = {"question": sample.inputs.get("question", sample.inputs.get("text"))}
        answers = sample.targets.get("answers", ())
        if self.split != "predict" and answers:
            inputs["text"] = Text(answers[0])
        if not isinstance(inputs["question"], Text) or (self.split != "predict" and not answers):
            has = sorted({*sample.inputs, *sample.targets})
            raise DataError(f"{sample.id}: expected a question and answers; it has {has}", sample.id)
        return replace(sample, inputs=inputs)


def visual_steps(settings: Any, split: Split) -> list[Transform]:
    """How pictures, or the frames of clips, become squares."""
    if settings.num_frames:
        return [PickFrames(settings.num_frames, random=split == "train"), ResizeClip(settings.size_px)]
    if split == "train" and settings.min_scale < 1:
        return [RandomResizedCrop(settings.size_px, area=(settings.min_scale, 1.0))]
    return [Resize(settings.size_px)]


def stack_seen(samples: Sequence[Sample], settings: Any) -> dict[str, Shaped[Tensor, " b *rest"]]:
    """What a batch of the samples shows: `image` [b, 3, h, w], or `video` [b, frames, 3, h, w]."""
    if not settings.num_frames:
        return {"image": stack_images(samples)}
    clips = [sample.inputs["video"] for sample in samples]
    return {"video": torch.stack([clip.frames for clip in clips if isinstance(clip, Video)])}


def seen(batch: Batch) -> Segment:
    """The picture or clip of each row."""
    modality = "video" if "video" in batch.inputs else "image"
    return Segment(modality, batch.inputs[modality])


def pair_targets(samples: Sequence[Sample], task: TextTask) -> dict[str, Any]:
    """Targets `words`, `is_word` and `texts` of the samples' input `text`, where they have one."""
    if not all("text" in sample.inputs for sample in samples):
        return {}
    words, is_word = padded(samples, "text", task.tokenizer, task.max_tokens)
    texts = [sample.inputs["text"] for sample in samples]
    strings = tuple(text.string for text in texts if isinstance(text, Text))
    return {"words": words, "is_word": is_word, "texts": strings}


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
