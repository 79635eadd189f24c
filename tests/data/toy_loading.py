"""Small tasks for the tests of the loader. A file of its own, since worker processes import it too."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from allsight.data.listings import SampleClasses
from allsight.data.policies import Policy
from allsight.data.sampler import Plan
from allsight.types import Batch, DataError, Image, Sample


@dataclass(frozen=True)
class Settings:
    batch_size: int = 4
    share: float = 1.0
    group_size: int = 1
    policy: Policy = field(default_factory=Policy)
    lengths: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None
    size: int = 20
    sequences: tuple[int, ...] | None = None
    corrupt: tuple[int, ...] = ()
    """Indices that cannot be read."""
    trouble: dict[int, str] = field(default_factory=dict)
    """Index -> what happens when it is read."""
    sample_timeout_s: float | None = None


class Reader:
    def __init__(self, name, settings, split):
        self.name, self.settings, self.split = name, settings, split
        if settings.sequences is not None:
            self.sequences = settings.sequences
        if settings.lengths is not None:
            self.lengths = np.array(settings.lengths)
        if settings.labels is not None:
            self.sample_classes = lambda: SampleClasses.one_each(np.array(settings.labels))

    def __len__(self):
        return self.settings.size

    def __getitem__(self, index):
        if index in self.settings.corrupt:
            raise DataError(f"{self.name}/{index}: cut short", f"{self.name}/{index}")
        trouble = self.settings.trouble.get(index, "")
        if trouble.startswith("die once "):
            mark = Path(trouble.removeprefix("die once "))
            if not mark.exists():
                mark.touch()
                os._exit(7)
        match trouble:
            case "die":
                os._exit(7)
            case "kill":
                os.kill(os.getpid(), 9)
            case "hang":
                time.sleep(600)
            case "raise":
                raise KeyError("label")
        pixels = torch.full((3, 4, 4), index % 256, dtype=torch.uint8)
        return Sample.of_image(f"{self.name}/{index}", pixels, {"label": index})


def noisy(sample, rng):
    """A transform that shows which random numbers it got."""
    noise = torch.from_numpy(rng.integers(0, 256, size=(3, 4, 4), dtype="uint8"))
    return Sample(sample.id, {"image": Image(sample.image.pixels ^ noise)}, sample.targets)


def unchanged(sample, rng):
    return sample


class Toy:
    def __init__(self, name, settings):
        self.name, self.config = name, settings

    def reader(self, split):
        return Reader(self.name, self.config, split)

    def transform(self, split):
        return noisy if split == "train" else unchanged

    def mix(self, samples, rng):
        share = float(rng.random())
        return [
            Sample(
                sample.id, sample.inputs, {**sample.targets, "share": share, "group": [s.id for s in samples]}
            )
            for sample in samples
        ]

    def collate(self, samples):
        targets = {"label": torch.tensor([sample.targets["label"] for sample in samples])}
        if "share" in samples[0].targets:
            targets["share"] = torch.tensor([sample.targets["share"] for sample in samples])
            targets["group"] = [sample.targets["group"] for sample in samples]
        images = torch.stack([sample.image.pixels for sample in samples])
        return Batch(
            self.name,
            tuple(sample.id for sample in samples),
            {"image": images.to(memory_format=torch.channels_last)},
            targets,
        )


def toy_plan(tasks, **settings):
    """A plan that workers can rebuild."""
    sources = {name: Toy(name, given) for name, given in tasks.items()}
    if settings.pop("mixing", False) is None:
        settings["mixing"] = ()
    return Plan.of_tasks(sources, seed=3, rebuild=(rebuilt, (tasks, settings)), **settings)


def rebuilt(tasks, settings):
    return toy_plan(tasks, **settings)


def not_rebuilt():
    raise OSError("the disk is gone")
