"""The contract of a task: what is asked of a model, and how its answers are scored. One class, one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from allsight.config import Config, ConfigError, Configured, Family, Mixture
from allsight.data.policies import Policy
from allsight.data.readers import format_and_place, open_reader, typed_options
from allsight.data.text import Tokenizer
from allsight.types import Answer, Batch, FeatureSpec, Outputs, Query, Sample

TASKS = Family(
    "task",
    {
        "bev_detection": "allsight.tasks.bev_detection:BEVDetection",
        "bev_segmentation": "allsight.tasks.bev_segmentation:BEVSegmentation",
        "captioning": "allsight.tasks.captioning:Captioning",
        "classification": "allsight.tasks.classification:Classification",
        "image_text_retrieval": "allsight.tasks.image_text_retrieval:ImageTextRetrieval",
        "language": "allsight.tasks.language:Language",
        "masked_language": "allsight.tasks.masked_language:MaskedLanguage",
        "pretraining": "allsight.tasks.pretraining:Pretraining",
        "semantic_segmentation": "allsight.tasks.segmentation:SemanticSegmentation",
        "text_classification": "allsight.tasks.text_classification:TextClassification",
        "text_retrieval": "allsight.tasks.text_retrieval:TextRetrieval",
        "video_classification": "allsight.tasks.video_classification:VideoClassification",
        "video_text_retrieval": "allsight.tasks.image_text_retrieval:VideoTextRetrieval",
        "vqa": "allsight.tasks.vqa:VQA",
    },
)

Split = Literal["train", "val", "predict"]
Transform = Callable[[Sample, np.random.Generator], Sample]
Share = float | tuple[tuple[int, float], ...]


@runtime_checkable
class Reader(Protocol):
    """Random access to the samples of one split.

    A reader of streams (video, drives) also has `sequences`: the lengths of its streams, which lie end to
    end. Reading a broken sample raises `DataError` with the sample's id.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Metric(Protocol):
    """A score that can be built up batch by batch and merged across processes.

    `merge` of two halves equals one pass over both; `compute` gives `{name: value}`, higher or lower as the
    name says. State is plain numpy arrays, numbers and tuples, so that it can be sent between processes.
    """

    def update(self, answers: Sequence[Answer], batch: Batch) -> None: ...

    def merge(self, other: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def tables(self) -> dict[str, Any]:
        """Larger results for the report, as plain values: `confusion` (rows truth, columns answer)."""
        ...


class Task(Configured):
    """Base of all tasks. Override what the task needs; nothing else may be overridden.

    Args:
        config: Its settings.
        name: Its name in the run's mixture; goes into batches, answers and events.
        root: Folder that relative `data` strings start from.
        classes: Class names that override what the data set says (loading weights without their data).

    A task names losses that are means over something else than samples (words, boxes, valid pixels) in
    `counted` (of the class, or a property where it depends on settings), and says in `counts` over how many,
    before the forward pass; the engine scales each micro-batch
    by count / global count, so results do not depend on how a batch is split.
    """

    class Config(Config):
        data: str = ""
        """`format:path`, relative to `data.root`, such as `imagefolder:tiny_imagenet20`."""
        data_options: Mixture[Any] = Mixture()
        """Settings of the data set's format, such as `fps` or `label`, by the names of its options."""
        train_split: str = Field(default="train", min_length=1)
        """Split to train on, as the data set names it."""
        val_split: str = Field(default="val", min_length=1)
        """Split to judge on, as the data set names it."""
        share: Share = 1.0
        """Share of the draws, a number or knots ((step, share), ...) joined by straight lines."""
        loss_weight: float = Field(default=1.0, ge=0)
        """Factor on this task's losses."""
        batch_size: int = Field(default=64, ge=1)
        """Samples per optimiser step over all ranks and micro-batches."""
        group_size: int = Field(default=1, ge=1)
        """Samples that see each other (mixup 2, retrieval its negatives); divides `batch_size`."""
        sample_timeout_s: float | None = Field(default=300.0, gt=0)
        """Seconds that a data worker may take to read and transform one sample. One that takes longer is
        started anew, and a sample to which that happens twice counts as one that cannot be used. None waits
        for ever."""
        policy: Policy = Policy()
        """How often samples occur, and which meet in a batch."""

        @field_validator("data_options")
        @classmethod
        def _format_has_the_options(cls, options: Mixture[Any], info: Any) -> Mixture[Any]:
            data = info.data.get("data", "")
            format = format_and_place(data)[0] if data and options else ""
            # Where the format is found out from the folder, options are judged when it is opened.
            return Mixture(typed_options(format, options)) if format else options

        @field_validator("share")
        @classmethod
        def _share_is_positive(cls, share: Share) -> Share:
            values = [value for _, value in share] if isinstance(share, tuple) else [share]
            if not values or min(values) < 0 or max(values) <= 0:
                raise ValueError(f"expected a share above 0 (or knots that are not all 0), got {share}")
            return share

        @model_validator(mode="after")
        def _groups_are_whole(self) -> Task.Config:
            if self.batch_size % self.group_size:
                raise ValueError(
                    f"group_size={self.group_size} does not divide batch_size={self.batch_size}; set one "
                    "that does"
                )
            return self

    family: ClassVar[Family | None] = TASKS
    counted: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, config: Any, *, name: str = "", root: Path | None = None, classes: tuple[str, ...] = ()
    ) -> None:
        self.config = config
        self.name = name
        self.root = root
        self.given_classes = classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names: those given, else those of the data set. Saved with the run (`classes.json`)."""
        return self.given_classes

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns its texts into token ids; None for tasks without text. All tasks of a run share one.

        Saved with the run (`tokenizer.json`); a run is not resumed with another.
        """
        return None

    def open_data(self, split: Split, **options: Any) -> Any:
        """The reader of `config.data` for `train` or `val`, with `config.data_options`; made for `reader`.

        Args:
            options: What the task's own settings say to the format.
        Raises:
            ConfigError: An option that both say; as `open_reader`.
            DataError: As `open_reader`.
        """
        name = self.config.train_split if split == "train" else self.config.val_split
        return self.open_named(self.config.data, name, **options)

    def open_named(self, data: str, split: str, **options: Any) -> Any:
        """As `open_data`, for any data of the same kind and a split as the data set names it."""
        given = self.config.data_options
        twice = next((option for option in options if option in given), None)
        if twice is not None:
            raise ConfigError(
                f"config.tasks.{self.name}.data_options.{twice}: {given[twice]!r}, but the task's own "
                f"settings say {options[twice]!r}; set one of them"
            )
        return open_reader(data, self.root, split, **given, **options)

    def reader(self, split: Split) -> Reader:
        """The samples of `train` or `val`."""
        raise NotImplementedError(f"{type(self).__name__} has no reader")

    def transform(self, split: Split) -> Transform:
        """A picklable (sample, generator) -> sample; random only in `train`, only through the generator."""
        return _same

    def mix(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sequence[Sample]:
        """Mix the samples of one group (mixup, cutmix). Called in training where `group_size` > 1."""
        return samples

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pure: the rows of a micro-batch. Predict samples may lack targets."""
        raise NotImplementedError(f"{type(self).__name__} has no collate")

    def head(self, features: tuple[FeatureSpec, ...]) -> nn.Module:
        """A head that takes the backbone's feature maps (a tuple of [b, c, h, w]) and gives Outputs."""
        raise NotImplementedError(f"{type(self).__name__} has no head; it needs a model that reads queries")

    def cast(self, batch: Batch) -> Query:
        """The batch as a query and its candidates, for generalists."""
        raise NotImplementedError(f"{type(self).__name__} has no query; it needs a model with heads")

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Named mean losses. A mean over zero items is a zero that keeps its graph."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def counts(self, batch: Batch) -> dict[str, float]:
        """For each loss in `counted`, over how many items this batch's mean will be."""
        return {}

    def decode(self, outputs: Outputs, batch: Batch) -> list[Answer]:
        """One answer a row, in the user's terms."""
        raise NotImplementedError(f"{type(self).__name__} has no decode")

    def truth(self, batch: Batch) -> list[Answer]:
        """What `decode` would give if the model were right: the annotations, for reports."""
        raise NotImplementedError(f"{type(self).__name__} has no truth")

    def picture(self, batch: Batch, row: int, answer: Answer) -> UInt8[np.ndarray, "h w 3"] | None:
        """What a report shows of a row; None takes the input `image`."""
        return None

    def metric(self) -> Metric:
        """A fresh metric."""
        raise NotImplementedError(f"{type(self).__name__} has no metric")

    def main_metric(self) -> str:
        """Name of the value of `metric().compute()` that says how good the task is; higher is better."""
        raise NotImplementedError(f"{type(self).__name__} names no main metric")

    def for_probes(self, data: str = "") -> Task | None:
        """Its pictures with one class each, as a task whose batches have `image` and integer `label`, for
        probes of features; None: not of this kind. A data set may still name no `classes`.

        Args:
            data: Another set of pictures, seen as this task sees its own.
        """
        return None


def _same(sample: Sample, rng: np.random.Generator) -> Sample:
    return sample


def build_tasks(
    configs: Mapping[str, Any], root: Path | None, classes: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, Task]:
    """The tasks of a mixture, in its order.

    Args:
        classes: Task -> class names to use in place of the data set's.
    """
    given = classes or {}
    return {
        name: config.build(name=name, root=root, classes=given.get(name, ()))
        for name, config in configs.items()
    }
