"""Views of pictures with whatever people say of them: what pre-training learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allsight.config import Config, ConfigError
from allsight.data.policies import few_of
from allsight.data.some_labels import SomeLabels
from allsight.data.text import Tokenizer
from allsight.data.transforms import (
    CentralView,
    ColorJitter,
    GaussianBlur,
    Grey,
    RandomView,
    Solarise,
    Sometimes,
    Views,
)
from allsight.tasks.base import Reader, Split, Task, Transform
from allsight.tasks.classification import Classification, stack_images
from allsight.tasks.metrics.pretraining import PretrainingScores
from allsight.tasks.settings import find_classes, given_options, training_ids
from allsight.types import Answer, Batch, DataError, PretrainingAnswer, Sample, Text

NOBODY_LABELLED = -100


class ViewLooks(Config):
    """How one view is cropped and changed in looks; as given, the first view of Siamese Image Modeling.

    Attributes:
        size_px: Side; None: that of the task.
        area: Range of the crop's share of the picture.
        flip: Probability of mirroring.
        colour: Probability of jitter in colours, ...
        jitter: ... and its strength for brightness, contrast, saturation and hue.
        grey: Probability of no colours.
        blur: Probability of a Gaussian blur, ...
        blur_sigma_px: ... and the range of its width.
        solarise: Probability of inverting bright pixels.
    """

    size_px: int | None = Field(default=None, ge=1)
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = Field(default=0.5, ge=0, le=1)
    colour: float = Field(default=0.8, ge=0, le=1)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = Field(default=0.2, ge=0, le=1)
    blur: float = Field(default=1.0, ge=0, le=1)
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    solarise: float = Field(default=0.0, ge=0, le=1)


FIRST_VIEW = ViewLooks()
SECOND_VIEW = ViewLooks(blur=0.1, solarise=0.2)
"""The two views of Siamese Image Modeling, arXiv:2206.01204."""


class Pretraining(Task):
    """Views of each picture, with its class and its caption where they are known and wanted.

    Batches hold `views` and `geometry`, a tensor for each view, and `seed` among the inputs (see
    `allsight.models.M3I`), `label` and, with a tokenizer, `tokens`, `is_token` and `captioned` among the
    targets. A run may have several such tasks, with labels, with captions, and with neither. The model
    returns the losses.
    """

    class Config(Task.Config):
        views: tuple[ViewLooks, ...] = (FIRST_VIEW, SECOND_VIEW)
        """How each view is made, all from one decoded picture."""
        size_px: int = Field(default=224, ge=1)
        """Side of a view."""
        labels: Literal["use", "ignore"] = "use"
        """Whether classes that the data set knows are targets."""
        labelled: float = Field(default=1.0, gt=0, le=1)
        """Share of the training pictures whose classes are used, the same ones that `policy.fraction` picks;
        the others stay, without."""
        tokenizer: str = ""
        """File (or folder) of the tokenizer for captions, from `data.root`; empty: captions are not used."""
        max_tokens: int = Field(default=77, ge=1)
        """Longer captions are cut."""
        leave_out: tuple[str, ...] = ()
        """Training samples whose name within the split begins with one of these are left out."""
        interpolation: Literal["bilinear", "bicubic"] = "bicubic"
        """How crops are resized."""

    config: Pretraining.Config

    @property
    def counted(self) -> tuple[str, ...]:  # type: ignore[override]
        """The supervision that it gives, of which some rows may have none."""
        has_label, has_caption = self.config.labels == "use", bool(self.config.tokenizer)
        return ("label",) * has_label + ("caption",) * has_caption

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; none where classes are not used."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self.config.labels == "ignore":
            return ()
        data = self.config.data
        return find_classes(
            self.given_classes, lambda: tuple(self._open("train").classes), data=data, may_lack=True
        )

    @property
    def num_classes(self) -> int | None:
        """How many classes there are; None: none."""
        return len(self.classes) or None

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if not self.config.tokenizer:
            return None
        path = Path(self.config.tokenizer).expanduser()
        if not path.is_absolute():
            if self.root is None:
                raise ConfigError(
                    f"config.tasks.{self.name}.tokenizer: '{path}' is relative and there is no data.root"
                )
            path = self.root / path
        return Tokenizer.from_file(path)

    def reader(self, split: Split) -> Reader:
        return self._open(split)

    def transform(self, split: Split) -> Transform:
        config = self.config
        views: list[Transform] = []
        for looks in config.views:
            size = looks.size_px or config.size_px
            if split == "train":
                views.append(
                    RandomView(
                        size, looks.area, looks.flip, _changes(looks), interpolation=config.interpolation
                    )
                )
            else:
                views.append(CentralView(size, interpolation=config.interpolation))
        return Prepare(
            Views(tuple(views)),
            self.tokenizer,
            config.max_tokens,
            self.num_classes or 0,
            is_random=split == "train",
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack views, their geometry, labels and captions.

        Raises:
            DataError: Views of different sizes.
        """
        views, geometry = [], []
        for number in range(len(self.config.views)):
            shown = [replace(sample, inputs=sample.views[number]) for sample in samples]
            views.append(stack_images(shown))
            crops = [sample.image.crop for sample in shown]
            geometry.append(torch.tensor([crop.numbers() for crop in crops if crop is not None]))
        inputs: dict[str, Any] = {
            "image": views[0],
            "views": tuple(views),
            "geometry": tuple(geometry),
            "seed": torch.tensor([_seed_of(sample) for sample in samples]),
        }
        targets: dict[str, Any] = {}
        if self.config.labels == "use":
            labels = [sample.targets.get("label", NOBODY_LABELLED) for sample in samples]
            targets["label"] = torch.tensor(labels)
        if self.tokenizer is not None:
            rows = [_tokens(sample) for sample in samples]
            tokens, is_token = self.tokenizer.pad(rows, self.config.max_tokens)
            targets |= {"tokens": tokens, "is_token": is_token, "captioned": is_token.any(1)}
        return Batch(self.name, tuple(sample.id for sample in samples), inputs, targets)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return outputs["losses"]

    def counts(self, batch: Batch) -> dict[str, float]:
        counts = {}
        if "label" in self.counted:
            counts["label"] = float((batch.targets["label"] >= 0).sum())
        if "caption" in self.counted:
            counts["caption"] = float(batch.targets["captioned"].sum())
        return counts

    def decode(self, outputs: dict[str, Any], batch: Batch) -> list[Answer]:
        losses = {name: float(loss) for name, loss in outputs["losses"].items()}
        logits = outputs.get("logits")
        found = [None] * len(batch) if logits is None else logits.argmax(1).tolist()
        return [
            PretrainingAnswer(id, self.name, losses, label, self.classes)
            for id, label in zip(batch.ids, found, strict=True)
        ]

    def truth(self, batch: Batch) -> list[Answer]:
        found = batch.targets.get("label")
        every = [NOBODY_LABELLED] * len(batch) if found is None else found.tolist()
        labels = [label if label >= 0 else None for label in every]
        return [
            PretrainingAnswer(id, self.name, {}, label, self.classes)
            for id, label in zip(batch.ids, labels, strict=True)
        ]

    def metric(self) -> PretrainingScores:
        return PretrainingScores()

    def main_metric(self) -> str:
        return "agreement"

    def for_probes(self, data: str = "") -> Classification:
        """Each picture with its class, seen whole at the size of the first view; all labels are used."""
        config = self.config
        settings = Classification.Config(
            data=config.data,
            train_split=config.train_split,
            val_split=config.val_split,
            leave_out=config.leave_out,
            size_px=config.views[0].size_px or config.size_px,
            interpolation=config.interpolation,
            eval_crop=1.0,
        )
        return Classification(settings, name=self.name, root=self.root).for_probes(data)

    def _open(self, split: Split) -> Any:
        config = self.config
        options = given_options(leave_out=training_ids(config.leave_out, config.train_split))
        reader = self.open_data(split, **options)
        if split != "train" or config.labelled == 1 or config.labels == "ignore":
            return reader
        return SomeLabels(reader, few_of(reader, config.labelled, seed=config.policy.fraction_seed))


@dataclass(frozen=True)
class Prepare:
    """Views, seed, label and one caption of a sample.

    Args:
        views: Makes the views.
        tokenizer: For captions; None: they are not used.
        max_tokens: Longer captions are cut.
        num_classes: Labels outside are refused; 0: there are none.
        is_random: Whether draws come from the generator, or belong to the sample for ever.
    Raises:
        DataError: A label that is no class.
    """

    views: Views
    tokenizer: Tokenizer | None
    max_tokens: int
    num_classes: int
    is_random: bool = True

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # Masks and captions are drawn too in evaluation, but always the same ones.
        seeds = rng.integers(2**62, size=2).tolist() if self.is_random else [_number_of(sample.id)] * 2
        targets: dict[str, Any] = {"seed": seeds[0]}
        label = sample.targets.get("label")
        if label is not None and self.num_classes:
            if not 0 <= int(label) < self.num_classes:
                raise DataError(f"{sample.id}: label {label}; expected 0..{self.num_classes - 1}", sample.id)
            targets["label"] = int(label)
        texts = _captions(sample)
        if self.tokenizer is not None and texts:
            tokens = self.tokenizer.encode(texts[seeds[1] % len(texts)], self.max_tokens - 1)
            end = torch.tensor([self.tokenizer.eos_id])
            targets["caption"] = torch.cat([tokens, end])
        return replace(self.views(sample, rng), targets=targets)


def _seed_of(sample: Sample) -> int:
    return sample.targets.get("seed", _number_of(sample.id))


def _captions(sample: Sample) -> tuple[str, ...]:
    text = sample.inputs.get("text")
    return sample.targets.get("captions", ()) or ((text.string,) if isinstance(text, Text) else ())


def _tokens(sample: Sample) -> Tensor:
    return sample.targets.get("caption", torch.zeros(0, dtype=torch.int64))


def _number_of(id: str) -> int:
    """A number below 2^62 that belongs to an id for ever."""
    return int.from_bytes(sha256(id.encode()).digest()[:8], "big") >> 2


def _changes(looks: ViewLooks) -> tuple[Transform, ...]:
    chances: list[tuple[Transform, float]] = [
        (ColorJitter(*looks.jitter), looks.colour),
        (Grey(), looks.grey),
        (GaussianBlur(looks.blur_sigma_px), looks.blur),
        (Solarise(), looks.solarise),
    ]
    return tuple(Sometimes(transform, chance) for transform, chance in chances if chance > 0)
