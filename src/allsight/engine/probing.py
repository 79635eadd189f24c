"""Features of a model on the samples of a task, and what a probe makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allsight.config import ConfigError
from allsight.data.loader import EvaluationLoader
from allsight.data.text import Tokenizer
from allsight.engine.config import ProbeKind
from allsight.engine.distributed import Ranks
from allsight.engine.precision import Kind as NumberFormat
from allsight.engine.precision import Precision
from allsight.models.base import CaptionSpace
from allsight.tasks.base import Task
from allsight.tasks.metrics import TopK
from allsight.tasks.probes import Features, class_captions, fit_linear, nearest_captions, vote
from allsight.types import CorruptSample, DataError

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Extraction:
    """How features are taken.

    Args:
        device: Where the network is.
        precision: Number format of its pass.
        batch_size: Pictures that go through it together.
        max_train, max_val: Use only so many pictures, evenly spread; None: all.
        max_corrupt_fraction: Share of unreadable samples above which there is no score.
        ranks: Processes that share the pictures out; all get all features.
    """

    device: torch.device | str = "cpu"
    precision: NumberFormat = "fp32"
    batch_size: int = 64
    max_train: int | None = None
    max_val: int | None = None
    max_corrupt_fraction: float = 0.01
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class ProbeScore:
    """What a probe found on the validation samples.

    Args:
        kind: Which probe.
        task: Name of the task whose samples and classes were used.
        values: Metrics, then the probe's settings.
        train_samples, val_samples: How many were used.
        corrupt: Samples that could not be read and were left out.
        seconds: Extraction and probe.
    """

    kind: ProbeKind
    task: str
    values: Mapping[str, float]
    train_samples: int
    val_samples: int
    corrupt: tuple[CorruptSample, ...]
    seconds: float

    def noted(self) -> dict[str, float]:
        """Its values and counts, for an event."""
        counts = {"train_samples": self.train_samples, "val_samples": self.val_samples}
        return {**self.values, **counts, "seconds": self.seconds}


def probe(
    backbone: nn.Module,
    task: Task,
    kind: Literal["knn", "linear"],
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    how: Extraction | None = None,
) -> ProbeScore:
    """Judge features by how well the classes of a task can be told apart with them.

    The backbone stays as it is; its features are taken once, with the task's evaluation transform.

    Args:
        backbone: Pictures to feature maps; the coarsest one is averaged over its pixels.
        task: Batches have `image` and integer `label` (`Task.for_probes`).
        kind: "knn", the vote of the nearest training pictures, or "linear", logistic regression.
        neighbours, temperature: Of the vote; see `allsight.tasks.probes.vote`.
        how: How features are taken.
    Raises:
        DataError: Too many samples cannot be read, or too few are there for the probe.
        ConfigError: The task does not say how many classes there are.
    """
    begun, how = time.perf_counter(), how or Extraction()
    classes: int = task.num_classes  # type: ignore[attr-defined]
    (train, bad), (val, more) = (_usable(backbone_features(backbone), task, s, how) for s in ("train", "val"))
    settings: dict[str, float] = {}
    try:
        if kind == "knn":
            settings = {"neighbours": neighbours, "temperature": temperature}
            scores = vote(
                train, val.vectors, num_classes=classes, neighbours=neighbours, temperature=temperature
            )
        else:
            fitted = fit_linear(train, num_classes=classes)
            settings = {"weight_decay": fitted.weight_decay, "held_out": fitted.held_out[fitted.weight_decay]}
            scores = fitted(val.vectors)
    except ValueError as error:
        raise DataError(f"task '{task.name}': {kind} probe: {error}") from None
    values = {**_metrics(val, scores, classes), **settings}
    return ProbeScore(
        kind, task.name, values, len(train), len(val), (*bad, *more), time.perf_counter() - begun
    )


def zero_shot(
    model: nn.Module, task: Task, tokenizer: Tokenizer, *, how: Extraction | None = None
) -> ProbeScore:
    """Judge a model of pictures and captions by how often a picture lies nearest to its class's name.

    Args:
        model: Embeds pictures and captions (`CaptionSpace`).
        task: As for `probe`; its class names are what is said.
        tokenizer: The model's.
        how: How features are taken.
    Raises:
        ConfigError: The model has no space of captions.
        DataError: Too many samples cannot be read.
    """
    begun, how = time.perf_counter(), how or Extraction()
    if not isinstance(model, CaptionSpace):
        raise ConfigError(
            f"zero_shot: {type(model).__name__} does not put pictures and captions into one space; m3i with "
            "a target of captions does"
        )
    classes: tuple[str, ...] = task.classes
    said = class_captions(classes, tokenizer)
    assert said.mask is not None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), Precision(how.precision, torch.device(how.device)).forward():
            captions = model.embed_captions(said.content.to(how.device), said.mask.to(how.device))
        val, bad = _usable(PictureVectors(model, model.embed_pictures), task, "val", how)
    finally:
        model.train(was_training)
    scores = nearest_captions(val.vectors, captions.to(val.vectors.dtype), len(classes))
    values = _metrics(val, scores, len(classes))
    return ProbeScore("zero_shot", task.name, values, 0, len(val), bad, time.perf_counter() - begun)


@dataclass(frozen=True)
class PictureVectors:
    """A network and how it makes one vector of a picture."""

    network: nn.Module
    encode: Callable[[Tensor], Float[Tensor, "b d"]]


def backbone_features(backbone: nn.Module) -> PictureVectors:
    """The mean over the pixels of the coarsest map."""
    return PictureVectors(backbone, lambda images: _widened(backbone(images)[-1]).mean(dim=(2, 3)))


@torch.no_grad()
def features_of(
    pictures: PictureVectors, task: Task, split: Split, how: Extraction | None = None
) -> tuple[Features, tuple[CorruptSample, ...]]:
    """A vector of every sample of a split, in the reader's order.

    Training samples too are seen with the evaluation transform. The network is put into evaluation mode for
    the while.

    Returns:
        The features, and the samples that cannot be read, which are left out.
    """
    how = how or Extraction()
    place = torch.device(how.device)
    number_format = Precision(how.precision, place)
    was_training = pictures.network.training
    pictures.network.eval()
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    corrupt: list[CorruptSample] = []
    loader = EvaluationLoader(
        task,
        task.reader(split),
        batch_size=how.batch_size,
        rank=how.ranks.rank,
        world=how.ranks.world,
        max_samples=how.max_train if split == "train" else how.max_val,
    )
    try:
        for batch in loader:
            corrupt += batch.corrupt
            if not len(batch):
                continue
            batch = batch.to(place)
            with number_format.forward():
                found = pictures.encode(batch.inputs["image"])
            vectors.append(_widened(found).cpu())
            labels.append(batch.targets["label"].cpu())
    finally:
        pictures.network.train(was_training)
    # Ranks read neighbouring parts, so that in their order the reader's is kept.
    of_ranks = how.ranks.gather((vectors, labels, corrupt))
    vectors, labels, corrupt = (
        [each for part in kind for each in part] for kind in zip(*of_ranks, strict=True)
    )
    if not vectors:
        return Features(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)), tuple(corrupt)
    return Features(torch.cat(vectors).to(place), torch.cat(labels).to(place)), tuple(corrupt)


def _usable(
    pictures: PictureVectors, task: Task, split: Split, how: Extraction
) -> tuple[Features, tuple[CorruptSample, ...]]:
    """The features of a split, refused where too many samples are missing."""
    found, bad = features_of(pictures, task, split, how)
    if len(bad) > how.max_corrupt_fraction * (len(found) + len(bad)) or not len(found):
        some = f", such as '{bad[0].id}': {bad[0].reason}" if bad else ""
        raise DataError(
            f"task '{task.name}': {len(bad)} of {len(found) + len(bad)} {split} samples cannot be "
            f"used{some}; mend or remove them"
        )
    return found, bad


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _metrics(val: Features, scores: Tensor, classes: int) -> dict[str, float]:
    top = TopK((1, 5) if classes > 5 else (1,), classes)
    top.add(val.labels.cpu().numpy(), scores.cpu().numpy())
    return top.compute()
