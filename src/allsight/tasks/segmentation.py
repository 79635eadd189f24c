"""Which class every pixel belongs to.

Letters: b batch, c channels, k classes, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from allsight.data.transforms import (
    ColorJitter,
    Compose,
    HorizontalFlip,
    RandomCrop,
    RandomScale,
    Resize,
)
from allsight.layers import ConvLast, make_norm
from allsight.objectives import pixel_cross_entropy, pixel_weight
from allsight.tasks.base import Reader, Split, Task, Transform
from allsight.tasks.classification import stack_images
from allsight.tasks.metrics import SegmentationScores
from allsight.tasks.settings import check_class_weights, given_options, training_ids
from allsight.types import Answer, Batch, FeatureSpec, LabelMapAnswer, Sample

_STRIDE = 32
"""Sizes are multiples of it, so that every map of the usual backbones has a whole number of cells."""


class SemanticSegmentation(Task):
    """A class per pixel.

    Training sees crops, evaluation and prediction whole pictures: as large as fits into one canvas, padded to
    it at the right and below. Batches hold `image` [b, 3, h, w], `valid_hw_px` and `original_hw_px` [b, 2],
    and `label_map` [b, h, w] with 255 where nobody labelled. Outputs are `{"logits": [b, k, h/4, w/4]}`. The
    loss is a mean over the labelled pixels of the batch (over their class weights, if there are any).
    """

    counted: ClassVar[tuple[str, ...]] = ("cross_entropy",)

    class Config(Task.Config):
        classes: tuple[str, ...] = Field(default=(), max_length=255)
        """Class names in the order of the label values; empty takes those of the data set."""
        ignore_label: int | None = Field(default=None, ge=0, le=255)
        """Value of unlabelled pixels in the files; None takes what the data set says, else 255."""
        leave_out: tuple[str, ...] = ()
        """Training samples whose name within the split begins with one of these are left out."""
        crop_hw_px: tuple[int, int] = (256, 256)
        """Height and width of training crops."""
        min_scale: float = Field(default=0.5, gt=0)
        """Training pictures are first resized by a factor between this ..."""
        max_scale: float = Field(default=2.0, gt=0)
        """... and this."""
        flip: float = Field(default=0.5, ge=0, le=1)
        """Probability of mirroring left and right."""
        colour: float = Field(default=0.0, ge=0, le=1)
        """Largest relative change of brightness, contrast and saturation."""
        canvas_hw_px: tuple[int, int] = (512, 512)
        """Height and width into which whole pictures are fitted."""
        head_channels: int = Field(default=128, ge=1)
        """Width of the head's pyramid."""
        class_weights: tuple[float, ...] | None = None
        """Factor on the loss of each class's pixels."""

        @field_validator("crop_hw_px", "canvas_hw_px")
        @classmethod
        def _whole_cells(cls, hw_px: tuple[int, int]) -> tuple[int, int]:
            if min(hw_px) < 1 or any(side % _STRIDE for side in hw_px):
                raise ValueError(f"expected multiples of {_STRIDE}, got {hw_px}")
            return hw_px

        @model_validator(mode="after")
        def _settings_agree(self) -> SemanticSegmentation.Config:
            if self.min_scale > self.max_scale:
                raise ValueError(f"min_scale={self.min_scale:g} is above max_scale={self.max_scale:g}")
            if self.class_weights is not None:
                check_class_weights(self.class_weights, len(self.classes) or None)
            return self

    config: Config

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the label values."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        given = self.given_classes or self.config.classes
        return given or tuple(self._open("train").classes)

    @property
    def num_classes(self) -> int:
        """How many classes the model tells apart."""
        return len(self.classes)

    def reader(self, split: Split) -> Reader:
        return self._open(split)

    def transform(self, split: Split) -> Transform:
        config = self.config
        if split != "train":
            return Compose(Resize(config.canvas_hw_px, "fit"))
        steps: list[Transform] = [
            RandomScale(config.min_scale, config.max_scale),
            RandomCrop(config.crop_hw_px),
        ]
        if config.flip > 0:
            steps += [HorizontalFlip(config.flip)]
        if config.colour > 0:
            steps += [ColorJitter(config.colour, config.colour, config.colour)]
        return Compose(*steps)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack pictures, label maps and sizes.

        Raises:
            DataError: Pictures of different sizes.
        """
        images = [sample.image for sample in samples]
        inputs: dict[str, Any] = {
            "image": stack_images(samples),
            "valid_hw_px": torch.tensor([image.valid_hw_px or image.hw_px for image in images]),
            "original_hw_px": torch.tensor(
                [image.original_hw_px or image.valid_hw_px or image.hw_px for image in images]
            ),
        }
        targets: dict[str, Any] = {}
        if all("label_map" in sample.targets for sample in samples):
            targets["label_map"] = torch.stack([sample.targets["label_map"].pixels for sample in samples])
        return Batch(self.name, tuple(sample.id for sample in samples), inputs, targets)

    def head(self, features: tuple[FeatureSpec, ...]) -> nn.Module:
        if self.config.class_weights is not None:
            check_class_weights(self.config.class_weights, self.num_classes)
        return PyramidHead(features, self.config.head_channels, self.num_classes)

    def loss(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        labels = batch.targets["label_map"]
        logits = _resized(outputs["logits"], (int(labels.shape[1]), int(labels.shape[2])))
        weights = self.config.class_weights
        return {"cross_entropy": pixel_cross_entropy(logits, labels, class_weights=weights)}

    def counts(self, batch: Batch) -> dict[str, float]:
        labels = batch.targets["label_map"]
        return {"cross_entropy": pixel_weight(labels, class_weights=self.config.class_weights)}

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[Answer]:
        """Label maps without padding: in the size of the truth where there is one, else the original's."""
        canvas = (int(batch.inputs["image"].shape[2]), int(batch.inputs["image"].shape[3]))
        is_scored = "label_map" in batch.targets
        answers: list[Answer] = []
        for row, id in enumerate(batch.ids):
            logits = _resized(outputs["logits"][row : row + 1].detach(), canvas)
            height, width = batch.inputs["valid_hw_px"][row].tolist()
            wanted = (height, width) if is_scored else tuple(batch.inputs["original_hw_px"][row].tolist())
            label_map = _best_class(logits[0, :, :height, :width], wanted)
            answers.append(LabelMapAnswer(id, self.name, label_map.cpu().numpy(), self.classes))
        return answers

    def truth(self, batch: Batch) -> list[Answer]:
        maps = batch.targets["label_map"].cpu().numpy()
        sizes = batch.inputs["valid_hw_px"].tolist()
        return [
            LabelMapAnswer(id, self.name, maps[row, :height, :width], self.classes)
            for row, (id, (height, width)) in enumerate(zip(batch.ids, sizes, strict=True))
        ]

    def metric(self) -> SegmentationScores:
        return SegmentationScores(self.num_classes, self.classes)

    def main_metric(self) -> str:
        return "miou"

    def _open(self, split: Split) -> Any:
        config = self.config
        return self.open_data(
            split,
            **given_options(
                classes=self.given_classes or config.classes,
                ignore=config.ignore_label,
                leave_out=training_ids(config.leave_out, config.train_split),
            ),
        )


class PyramidHead(nn.Module):
    """Feature pyramid down to the finest map; each level is smoothed, brought to that map's size and added.

    Norms are per pixel, so padding and the other pictures of a batch leave no trace.

    Source: Kirillov et al., Panoptic Feature Pyramid Networks, arXiv:1901.02446, section 3, with one 3x3
    convolution per level.
    """

    def __init__(self, features: tuple[FeatureSpec, ...], channels: int, num_classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Linear(spec.channels, channels) for spec in features)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                make_norm("layer", channels),
                ConvLast(channels, channels, kernel_size=3, padding=1),
                make_norm("layer", channels),
                nn.GELU(),
            )
            for _ in features
        )
        self.classify = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)

    def forward(self, maps: tuple[Float[Tensor, "b _ _ _"], ...]) -> dict[str, Float[Tensor, "b k h w"]]:
        levels = [lateral(x.permute(0, 2, 3, 1)) for lateral, x in zip(self.lateral, maps, strict=True)]
        for finer in range(len(levels) - 2, -1, -1):
            levels[finer] = levels[finer] + _resized_last(levels[finer + 1], levels[finer])
        fused = self.smooth[0](levels[0])
        for smooth, level in zip(self.smooth[1:], levels[1:], strict=True):
            fused = fused + _resized_last(smooth(level), levels[0])
        return {"logits": self.classify(fused).permute(0, 3, 1, 2)}


def _best_class(logits: Float[Tensor, "k h w"], hw_px: tuple[int, ...]) -> UInt8[Tensor, "ho wo"]:
    """The likeliest class at each pixel of a picture of another size.

    One class after the other: all enlarged logits of a large photograph would not fit into memory.
    """
    if tuple(logits.shape[1:]) == hw_px:
        return logits.argmax(dim=0).to(torch.uint8)
    best = logits.new_full(hw_px, -torch.inf)
    winner = torch.zeros(hw_px, dtype=torch.uint8, device=logits.device)
    for index in range(len(logits)):
        score = F.interpolate(logits[None, index : index + 1], hw_px, mode="bilinear")[0, 0]
        is_better = score > best
        best = torch.where(is_better, score, best)
        winner[is_better] = index
    return winner


def _resized(maps: Float[Tensor, "b c _ _"], hw: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    return maps if tuple(maps.shape[2:]) == hw else F.interpolate(maps, hw, mode="bilinear")


def _resized_last(maps: Float[Tensor, "b _ _ c"], like: Float[Tensor, "b h w _"]) -> Float[Tensor, "b h w c"]:
    size = (int(like.shape[1]), int(like.shape[2]))
    return _resized(maps.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
