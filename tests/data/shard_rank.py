"""One rank that reads a mixture from a server: `python shard_rank.py URL CACHE OUT`."""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from allsight.data.loader import MetaDataloader
from allsight.data.policies import Policy
from allsight.data.readers import open_reader
from allsight.data.sampler import Plan
from allsight.types import Batch

STEPS = 8


@dataclass(frozen=True)
class Settings:
    data: str
    batch_size: int
    share: float
    cache: str | None = None
    group_size: int = 1
    policy: Policy = field(default_factory=Policy)


class FromServer:
    """A task that takes samples as they come."""

    def __init__(self, name, settings):
        self.name, self.config = name, settings

    def reader(self, split):
        cache = None if self.config.cache is None else Path(self.config.cache)
        options = {"cache": cache, "cache_mb": 8, "cache_block_kb": 16, "tries": 4}
        return open_reader(self.config.data, split=split, **options)

    def transform(self, split):
        return lambda sample, rng: sample

    def mix(self, samples, rng):
        return samples

    def collate(self, samples):
        sums = [int(sample.image.pixels.sum()) if "image" in sample.inputs else 0 for sample in samples]
        return Batch(self.name, tuple(s.id for s in samples), {}, {"sum": torch.tensor(sums)})


def mixture(url, cache, rank, world):
    """The plan of two data sets on one server."""
    tasks = {
        "classes": Settings(f"webdataset:{url}/classes", 8, 0.6, cache),
        "captions": Settings(f"webdataset:{url}/captions/{{split}}-{{00000..00001}}.tar", 4, 0.4),
    }
    sources = {name: FromServer(name, settings) for name, settings in tasks.items()}
    return Plan.of_tasks(
        sources,
        seed=7,
        layout="mixed_batch",
        lanes=2,
        rank=rank,
        world=world,
        steps=STEPS,
        rebuild=(mixture, (url, cache, rank, world)),
    )


def seen(plan):
    """(step, task, slot, id, sum of pixels) of all rows of this rank."""
    rows = []
    with MetaDataloader(plan) as loader:
        for step in loader:
            for task, batches in step.batches.items():
                for batch in batches:
                    sums = batch.targets["sum"].tolist()
                    rows += [
                        [step.number, task, slot, id, total]
                        for slot, id, total in zip(batch.slots.tolist(), batch.ids, sums, strict=True)
                    ]
    return rows


def main():
    url, cache, out = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = [None] * world
    dist.all_gather_object(rows, seen(mixture(url, cache, rank, world)))
    if rank == 0:
        Path(out).write_text(json.dumps(rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    main()
