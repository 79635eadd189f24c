"""Features of a backbone on the samples of a task, and what a probe makes of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from allsight.data.loader import EvaluationLoader
from allsight.engine.precision import Kind as NumberFormat
from allsight.engine.precision import Precision
from allsight.tasks.base import Task
from allsight.tasks.metrics import TopK
from allsight.tasks.probes import Features, fit_linear, vote
from allsight.types import CorruptSample, DataError

ProbeKind = Literal["knn", "linear"]


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


def probe(
    backbone: nn.Module,
    task: Task,
    kind: ProbeKind,
    *,
    device: torch.device | str = "cpu",
    precision: NumberFormat = "fp32",
    neighbours: int = 20,
    temperature: float = 0.07,
    batch_size: int = 64,
    max_corrupt_fraction: float = 0.01,
) -> ProbeScore:
    """Judge features by how well the classes of a task can be told apart with them.

    The backbone stays as it is; its features are taken once, with the task's evaluation transform.

    Args:
        backbone: Pictures to feature maps; the coarsest one is averaged over its pixels.
        task: A classification task: batches have `image` and integer `label`.
        kind: "knn", the vote of the nearest training pictures, or "linear", logistic regression.
        device: Where the backbone is.
        precision: Number format of the backbone's pass.
        neighbours, temperature: Of the vote; see `allsight.tasks.probes.vote`.
        batch_size: Pictures that go through the backbone together.
        max_corrupt_fraction: Share of unreadable samples above which there is no score.
    Raises:
        DataError: Too many samples cannot be read, or too few are there for the probe.
        ConfigError: The task does not say how many classes there are.
    """
    begun = time.perf_counter()
    corrupt: list[CorruptSample] = []
    parts = {}
    for split in ("train", "val"):
        parts[split], bad = features_of(
            backbone, task, split, device=device, precision=precision, batch_size=batch_size
        )
        if len(bad) > max_corrupt_fraction * (len(parts[split]) + len(bad)) or not len(parts[split]):
            some = f", such as '{bad[0].id}': {bad[0].reason}" if bad else ""
            raise DataError(
                f"task '{task.name}': {len(bad)} of {len(parts[split]) + len(bad)} {split} samples cannot be "
                f"used{some}; mend or remove them"
            )
        corrupt += bad
    train, val = parts["train"], parts["val"]
    classes: int = task.num_classes  # type: ignore[attr-defined]
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
    top = TopK((1, 5) if classes > 5 else (1,), classes)
    top.add(val.labels.cpu().numpy(), scores.cpu().numpy())
    seconds = time.perf_counter() - begun
    return ProbeScore(
        kind, task.name, {**top.compute(), **settings}, len(train), len(val), tuple(corrupt), seconds
    )


@torch.no_grad()
def features_of(
    backbone: nn.Module,
    task: Task,
    split: Literal["train", "val"],
    *,
    device: torch.device | str = "cpu",
    precision: NumberFormat = "fp32",
    batch_size: int = 64,
) -> tuple[Features, tuple[CorruptSample, ...]]:
    """Mean over the pixels of the coarsest map of every sample of a split, in the reader's order.

    Training samples too are seen with the evaluation transform. The backbone is put into evaluation mode for
    the while.

    Returns:
        The features, and the samples that cannot be read, which are left out.
    """
    place = torch.device(device)
    number_format = Precision(precision, place)
    was_training = backbone.training
    backbone.eval()
    vectors: list[Tensor] = []
    labels: list[Tensor] = []
    corrupt: list[CorruptSample] = []
    try:
        for batch in EvaluationLoader(task, task.reader(split), batch_size=batch_size):
            corrupt += batch.corrupt
            if not len(batch):
                continue
            batch = batch.to(place)
            with number_format.forward():
                maps = backbone(batch.inputs["image"])
            vectors.append(maps[-1].to(torch.promote_types(maps[-1].dtype, torch.float32)).mean(dim=(2, 3)))
            labels.append(batch.targets["label"])
    finally:
        backbone.train(was_training)
    if not vectors:
        return Features(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)), tuple(corrupt)
    return Features(torch.cat(vectors), torch.cat(labels)), tuple(corrupt)
