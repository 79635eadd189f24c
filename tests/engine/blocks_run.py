"""A run whose model has blocks to shard, a parameter without axes, and a head that most steps leave alone."""

import torch
from small_run import Signs, small_run
from torch import nn

from allsight.config import Mixture
from allsight.layers import recompute
from allsight.models.base import TaskModel
from allsight.types import FeatureSpec


class Step(nn.Module):
    """One residual block; sizes that two or four ranks cannot share evenly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, x):
        return x + self.fc2(torch.tanh(self.fc1(self.norm(x))))


class Blocks(TaskModel):
    """Vectors through blocks to one head for each task."""

    class Config(TaskModel.Config):
        width: int = 6
        depth: int = 3
        remat: bool = False
        unused: bool = True
        scalar: bool = True

    def __init__(self, config, tasks) -> None:
        super().__init__(config, tasks)
        self.stem = nn.Linear(config.width, 7)
        self.steps = nn.ModuleList(Step(7) for _ in range(config.depth))
        self.temperature = nn.Parameter(torch.ones(() if config.scalar else 1))
        self.unused = nn.Linear(3, 5) if config.unused else nn.Identity()
        self.heads = nn.ModuleDict({n: task.head((FeatureSpec(7, 1),)) for n, task in tasks.items()})
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def blocks_in_order(self):
        return list(self.steps)

    def forward(self, batch, state=None):
        x = self.stem(batch.inputs["vector"].to(self.stem.weight.dtype))
        for step in self.steps:
            x = recompute(step, x) if self.config.remat else step(x)
        return self.heads[batch.task](x) * self.temperature.exp(), None

    def after_step(self, step: int) -> None:
        self.calls += 1
        with torch.no_grad():
            self.temperature.clamp_(max=1.2)


def blocks_run(model=None, **changes):
    """As `small_run`: two tasks, SGD in float64 with momentum, clipping and average."""
    tasks = Mixture(
        a=Signs.Config(batch_size=8, length=45),
        b=Signs.Config(batch_size=8, length=21, share=0.5, reader_seed=7),
    )
    return small_run(model=model or Blocks.Config(), tasks=tasks, **changes)
