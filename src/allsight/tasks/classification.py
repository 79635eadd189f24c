"""Which class is in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Integer, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.config import ConfigError
from allsight.data.text import Tokenizer
from allsight.data.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    HorizontalFlip,
    Mix,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    ReflectPad,
    Resize,
)
from allsight.layers import make_norm
from allsight.objectives import label_weight, soft_cross_entropy
from allsight.tasks.asking import AskableTask
from allsight.tasks.base import Reader, Split, Task, Transform
from allsight.tasks.metrics import ClassificationScores
from allsight.tasks.names import names_as_texts, on, open_tokenizer
from allsight.tasks.settings import (
    check_class_weights,
    count_classes,
    find_classes,
    given_options,
    training_ids,
)
from allsight.types import (
    Answer,
    Batch,
    ClassScores,
    Closed,
    DataError,
    FeatureSpec,
    Query,
    Sample,
    Segment,
)


class Classification(AskableTask):
    """One label per picture, hard or (after mixup) soft.

    Batches hold `image` [b, 3, size_px, size_px] and `label`: int64 [b], or weights [b, classes]. Outputs are
    `{"logits": [b, classes]}`. The loss is a mean over the labels' class weights, or over rows without any.
    """

    counted: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    verbs = ("classify",)

    class Config(Task.Config):
        labels: str = "auto"
        """Where the data set keeps a picture's class: `auto`, `folder`, `prefix` or `file:NAME`."""
        leave_out: tuple[str, ...] = ()
        """Training samples whose name within the split begins with one of these are left out."""
        num_classes: int | None = Field(default=None, ge=1)
        """Number of classes; None takes the number of names that the data set (or the weights) brings."""
        size_px: int = Field(default=224, ge=1)
        """Side of the square that the model sees."""
        crop: Literal["resized", "padded", "none"] = "resized"
        """Training crop: of random area and aspect (`resized`), or a square moved over the padded picture."""
        min_scale: float = Field(default=0.08, gt=0, le=1)
        """With `resized`: smallest share of the picture's area."""
        crop_padding_px: int = Field(default=4, ge=0)
        """With `padded`: how far the square may reach over the edges, where it sees the picture mirrored."""
        interpolation: Literal["bilinear", "bicubic"] = "bilinear"
        """How pictures are resized, and how RandAugment looks up pixels that it moves."""
        flip: float = Field(default=0.5, ge=0, le=1)
        """Probability of mirroring left and right."""
        colour: float = Field(default=0.0, ge=0, le=1)
        """Largest relative change of brightness, contrast and saturation."""
        randaugment: int = Field(default=0, ge=0)
        """Random operations a picture (RandAugment); 0 switches it off."""
        randaugment_magnitude: float = Field(default=9.0, ge=0, le=10)
        """How strong they are, 0..10."""
        erasing: float = Field(default=0.0, ge=0, le=1)
        """Probability of overwriting a random rectangle."""
        mixup: float = Field(default=0.0, ge=0)
        """Alpha of mixup's Beta distribution; 0 switches it off."""
        cutmix: float = Field(default=0.0, ge=0)
        """Alpha of CutMix; where mixup is on too, each pair gets one of the two, by chance."""
        eval_crop: float = Field(default=0.875, gt=0, le=1)
        """Side of the evaluation's centre crop as a share of the resized picture's shorter side."""
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)
        """Share of each label that is spread evenly over all classes."""
        class_weights: tuple[float, ...] | Literal["balanced"] | None = None
        """Factor on each class's loss; `balanced`: samples / (classes * samples of the class)."""
        tokenizer: str = ""
        """For generalists, which read the class names: the `tokenizer.json`, relative to `data.root`."""
        temperature: str = ""
        """For generalists: name of the model's temperature; empty is the task's own."""
        top_k: tuple[int, ...] = (5,)
        """Further k for which top-k accuracy is reported; 1 always is."""

        @model_validator(mode="after")
        def _settings_agree(self) -> Classification.Config:
            for name in ("mixup", "cutmix"):
                if getattr(self, name) > 0 and self.group_size < 2:
                    raise ValueError(
                        f"{name}={getattr(self, name):g} mixes samples, but group_size={self.group_size} "
                        f"keeps them apart; set group_size=2 (or {name}=0)"
                    )
            if isinstance(self.class_weights, tuple):
                check_class_weights(self.class_weights, self.num_classes)
            if min(self.top_k, default=1) < 1:
                raise ValueError(f"top_k: expected numbers of 1 or more, got {self.top_k}")
            return self

    config: Config

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, as far as known; may be fewer than `num_classes`."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        config = self.config
        return find_classes(
            self.given_classes,
            lambda: tuple(self._open("train").classes),
            data=config.data,
            may_lack=config.num_classes is not None,
        )

    @cached_property
    def num_classes(self) -> int:
        """How many classes the model tells apart.

        Raises:
            ConfigError: Nothing says so, or the data set has more classes than the setting allows.
        """
        config = self.config
        return count_classes(config.num_classes, self.classes, task=self.name, data=config.data)

    @cached_property
    def class_weights(self) -> tuple[float, ...] | None:
        """Factor on each class's loss; None is 1 for all.

        Raises:
            ConfigError: As many weights as there are classes were expected.
        """
        weights = self.config.class_weights
        if weights is None:
            return None
        if weights == "balanced":
            return _balanced(np.asarray(self._open("train").labels), self.num_classes)
        check_class_weights(weights, self.num_classes)
        return tuple(weights)

    def reader(self, split: Split) -> Reader:
        return self._open(split)

    def transform(self, split: Split) -> Transform:
        config = self.config
        size = config.size_px
        if split == "predict":
            return Compose(*self._evaluation_crop())
        if split == "val":
            return Compose(*self._evaluation_crop(), CheckLabel(self.num_classes))
        steps: list[Transform] = []
        if config.crop == "resized":
            steps += [
                RandomResizedCrop(size, area=(config.min_scale, 1.0), interpolation=config.interpolation)
            ]
        elif config.crop == "padded":
            steps += [self._resize(size), ReflectPad(config.crop_padding_px), RandomCrop(size)]
        else:
            steps += self._evaluation_crop()
        if config.flip > 0:
            steps += [HorizontalFlip(config.flip)]
        if config.colour > 0:
            steps += [ColorJitter(config.colour, config.colour, config.colour)]
        if config.randaugment > 0:
            steps += [
                RandAugment(
                    config.randaugment, config.randaugment_magnitude, interpolation=config.interpolation
                )
            ]
        if config.erasing > 0:
            steps += [RandomErasing(config.erasing)]
        return Compose(*steps, CheckLabel(self.num_classes))

    def mix(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sequence[Sample]:
        config = self.config
        if config.mixup == 0 and config.cutmix == 0:
            return samples
        return Mix(self.num_classes, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)(samples, rng)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack pictures and labels.

        Raises:
            DataError: Pictures of different sizes.
        """
        targets: dict[str, Any] = {}
        if all("label" in sample.targets for sample in samples):
            targets["label"] = self._stack_labels([sample.targets["label"] for sample in samples])
        ids = tuple(sample.id for sample in samples)
        return Batch(self.name, ids, {"image": stack_images(samples)}, targets)

    def head(self, features: tuple[FeatureSpec, ...]) -> nn.Module:
        return PooledLinear(features[-1].channels, self.num_classes)

    @property
    def tokenizer(self) -> Tokenizer | None:
        config = self.config
        return open_tokenizer(config.tokenizer, self.root) if config.tokenizer else None

    def cast(self, batch: Batch) -> Query:
        """The picture, among the class names.

        Raises:
            ConfigError: No tokenizer for the names, or a class has none.
        """
        image = Segment("image", batch.inputs["image"])
        names = Closed(self.key, (on(image.content.device, self._names),))
        return Query((image,), names, None, batch.targets.get("label"), self.config.temperature)

    def among(self, candidates: tuple[str, ...]) -> AskableTask:
        return self.changed({"num_classes": None, "class_weights": None}, classes=candidates)

    @cached_property
    def _names(self) -> Segment:
        where = f"config.tasks.{self.name}"
        if self.tokenizer is None:
            raise ConfigError(f"{where}.tokenizer: required, since this model reads the names of the classes")
        if len(self.classes) < self.num_classes:
            raise ConfigError(f"{where}: {self.num_classes} classes, but {len(self.classes)} have names")
        return names_as_texts([name.replace("_", " ") for name in self.classes], self.tokenizer)

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        loss = soft_cross_entropy(
            outputs["logits"],
            batch.targets["label"],
            label_smoothing=self.config.label_smoothing,
            class_weights=self.class_weights,
        )
        return {"cross_entropy": loss, **outputs.get("penalties", {})}

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"cross_entropy": label_weight(batch.targets["label"], class_weights=self.class_weights)}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[Answer]:
        scores = outputs["logits"].detach().float().softmax(dim=1).cpu().numpy()
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, scores, strict=True)
        ]

    def truth(self, batch: Batch) -> list[Answer]:
        label = batch.targets["label"].cpu()
        soft = label if label.ndim == 2 else F.one_hot(label, self.num_classes)
        rows: Float32[np.ndarray, "b k"] = soft.float().numpy()
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, rows, strict=True)
        ]

    def metric(self) -> ClassificationScores:
        return ClassificationScores(self.config.top_k, self.num_classes, self.classes)

    def main_metric(self) -> str:
        return "top1"

    def for_probes(self, data: str = "") -> Classification:
        if not data:
            return self
        plain = Classification.Config()
        own = ("num_classes", "class_weights", "labels", "leave_out")
        settings = {"data": data, **{name: getattr(plain, name) for name in own}}
        return Classification(
            self.config.model_copy(update=settings), name=data.partition(":")[2] or data, root=self.root
        )

    def _open(self, split: Split) -> Any:
        config = self.config
        options = given_options(
            labels="" if config.labels == "auto" else config.labels,
            leave_out=training_ids(config.leave_out, config.train_split),
        )
        return self.open_data(split, **options)

    def _evaluation_crop(self) -> list[Transform]:
        size = self.config.size_px
        return [self._resize(round(size / self.config.eval_crop)), CenterCrop(size)]

    def _resize(self, shorter_px: int) -> Resize:
        return Resize(shorter_px, "short", interpolation=self.config.interpolation)

    def _stack_labels(self, labels: list[Any]) -> Shaped[Tensor, "b ..."]:
        if any(isinstance(label, Tensor) for label in labels):
            return torch.stack([self._soft(label) for label in labels])
        return torch.tensor([int(label) for label in labels])

    def _soft(self, label: Any) -> Float[Tensor, " k"]:
        if isinstance(label, Tensor):
            return label
        return F.one_hot(torch.tensor(int(label)), self.num_classes).float()


class PooledLinear(nn.Module):
    """Mean over the pixels of the coarsest map, norm, linear layer (as in ConvNeXt, arXiv:2201.03545).

    The norm stands after the mean: before it, the mean of normalised pixels has no fixed size, and trained
    less well in a trial.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = make_norm("layer", channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, maps: tuple[Float[Tensor, "b _ _ _"], ...]) -> dict[str, Float[Tensor, "b k"]]:
        return {"logits": self.linear(self.norm(maps[-1].mean(dim=(2, 3))))}


@dataclass(frozen=True)
class CheckLabel:
    """Refuses samples whose `label` is no class, before they reach a loss.

    Raises:
        DataError: No label, or one outside 0..num_classes - 1.
    """

    num_classes: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        label = sample.targets.get("label")
        if isinstance(label, Tensor):
            if label.shape != (self.num_classes,):
                raise DataError(
                    f"{sample.id}: soft label of shape {tuple(label.shape)}; expected ({self.num_classes},)",
                    sample.id,
                )
        elif label is None or not 0 <= label < self.num_classes:
            expected = f"0..{self.num_classes - 1}"
            found = "no label" if label is None else f"label {label}"
            raise DataError(f"{sample.id}: {found}; expected {expected}", sample.id)
        return sample


def stack_images(samples: Sequence[Sample]) -> Shaped[Tensor, "b 3 h w"]:
    """The pictures of samples as one tensor.

    Raises:
        DataError: One is of another size than the first.
    """
    first = samples[0].image.hw_px
    for sample in samples:
        if sample.image.hw_px != first:
            raise DataError(
                f"{sample.id}: picture of {sample.image.hw_px} px in a batch of {first} px; "
                f"the transform must bring all to one size",
                sample.id,
            )
    # In the order in which decoded pictures lie in memory, [h, w, 3], nothing has to be transposed.
    return torch.stack([sample.image.pixels.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)


def _balanced(labels: Integer[np.ndarray, " n"], num_classes: int) -> tuple[float, ...]:
    """Weights that give every class that occurs the same share of the loss; 0 for one that does not."""
    counts = np.bincount(labels, minlength=num_classes)
    occurring = int((counts > 0).sum())
    return tuple(len(labels) / (occurring * n) if n else 0.0 for n in counts.tolist())
