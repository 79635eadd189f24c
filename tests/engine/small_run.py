"""A run small enough for exactness tests: two tasks on vectors, a shared trunk, one head a task."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from allsight.config import Mixture
from allsight.engine.config import CheckpointConfig, EvalConfig, RunConfig, TrainConfig
from allsight.engine.optim import SGD
from allsight.engine.schedule import Cosine
from allsight.models.base import TaskModel
from allsight.tasks.base import Task
from allsight.types import Batch, ClassScores, DataError, Sample, Text


class Vectors:
    """Sample i is a vector that depends on (seed, i) alone; the label is the sign of a fixed projection."""

    classes = ("no", "yes")

    def __init__(self, length: int, seed: int, width: int, broken: tuple[int, ...]) -> None:
        self.length, self.seed, self.width, self.broken = length, seed, width, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"vectors/{index}: broken on purpose", f"vectors/{index}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        vector = torch.randn(self.width, generator=generator, dtype=torch.float64)
        return Sample(
            f"vectors/{index}",
            {"text": Text("")},
            {"vector": vector, "label": int(vector.sum() > 0)},
        )


class Correct:
    """Share of right answers."""

    def __init__(self) -> None:
        self.right, self.total = 0, 0

    def update(self, answers, batch) -> None:
        labels = batch.targets["label"].tolist()
        self.right += sum(int(a.scores.argmax()) == y for a, y in zip(answers, labels, strict=True))
        self.total += len(labels)

    def merge(self, other) -> None:
        self.right, self.total = self.right + other.right, self.total + other.total

    def compute(self) -> dict[str, float]:
        return {"top1": self.right / self.total}

    def tables(self):
        return {}


class Signs(Task):
    """Classify vectors. `poison` makes the samples with that index NaN; `weigh` uses a counted loss."""

    class Config(Task.Config):
        length: int = 48
        width: int = 6
        broken: tuple[int, ...] = ()
        broken_val: tuple[int, ...] = ()
        poison: tuple[int, ...] = ()
        reader_seed: int = 1

    counted = ("weighted",)

    def reader(self, split):
        c = self.config
        seed = {"train": c.reader_seed, "val": c.reader_seed + 100}[split]
        return Vectors(c.length, seed, c.width, c.broken if split == "train" else c.broken_val)

    def collate(self, samples):
        vectors = torch.stack([sample.targets["vector"] for sample in samples])
        for row, sample in enumerate(samples):
            if int(sample.id.split("/")[1]) in self.config.poison:
                vectors[row] = torch.nan
        labels = torch.tensor([sample.targets["label"] for sample in samples])
        return Batch(self.name, tuple(s.id for s in samples), {"vector": vectors}, {"label": labels})

    def head(self, features):
        return nn.Linear(features[0].channels, 2)

    def loss(self, outputs, batch):
        each = functional.cross_entropy(outputs, batch.targets["label"], reduction="none")
        weights = self._weights(batch)
        return {"plain": each.mean(), "weighted": (each * weights).sum() / weights.sum().clamp(min=1e-12)}

    def counts(self, batch):
        return {"weighted": float(self._weights(batch).sum())}

    def _weights(self, batch):
        return (batch.inputs["vector"][:, 0].detach().nan_to_num() > 0).to(batch.inputs["vector"].dtype)

    def decode(self, outputs, batch):
        scores = outputs.softmax(-1).detach().cpu().float().numpy()
        return [ClassScores(i, self.name, s, ("no", "yes")) for i, s in zip(batch.ids, scores, strict=True)]

    def truth(self, batch):
        return self.decode(functional.one_hot(batch.targets["label"], 2) * 50.0, batch)

    def metric(self):
        return Correct()

    def main_metric(self):
        return "top1"


class Trunk(TaskModel):
    """A two-layer perceptron for all tasks and a head for each; optionally batch norm and dropout."""

    class Config(TaskModel.Config):
        width: int = 6
        hidden: int = 8
        batch_norm: bool = False
        dropout: float = 0.0

    def __init__(self, config, tasks: Mapping) -> None:
        super().__init__(config, tasks)
        from allsight.types import FeatureSpec

        norm = nn.BatchNorm1d(config.hidden) if config.batch_norm else nn.Identity()
        self.body = nn.Sequential(
            nn.Linear(config.width, config.hidden), norm, nn.GELU(), nn.Dropout(config.dropout)
        )
        self.heads = nn.ModuleDict(
            {name: task.head((FeatureSpec(config.hidden, 1),)) for name, task in tasks.items()}
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, batch, state=None):
        vectors = batch.inputs["vector"].to(self.body[0].weight.dtype)
        return self.heads[batch.task](self.body(vectors)), None

    def after_step(self, step: int) -> None:
        self.calls += 1


def small_run(**changes) -> RunConfig:
    """Two tasks, SGD, float64: differences above 1e-12 are faults."""
    fields = {
        "name": "small",
        "model": Trunk.Config(),
        "tasks": Mixture(
            a=Signs.Config(batch_size=8), b=Signs.Config(batch_size=8, share=0.5, reader_seed=7)
        ),
        "optim": SGD.Config(lr=0.1, weight_decay=0.01, clip_norm=1.0, ema_decay=0.9),
        "schedule": Cosine.Config(steps=12),
        "precision": "fp64",
        "train": TrainConfig(),
        "eval": EvalConfig(pictures=2),
        "checkpoint": CheckpointConfig(every_steps=4),
    }
    return RunConfig(**{**fields, **changes})
