"""A run whose model has experts that tokens choose for themselves, for ranks to share."""

from blocks_run import blocks_run
from torch import nn

from allsight.layers import ExpertLinear, TokenMix, choose_experts, recompute
from allsight.models.base import TaskModel
from allsight.types import FeatureSpec


class Chosen(nn.Module):
    """A router and two layers of experts, residual."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.fc1 = ExpertLinear(width, 5, experts, per_token=True)
        self.fc2 = ExpertLinear(5, width, experts, per_token=True)

    def forward(self, x):
        mix = TokenMix(*choose_experts(3 * self.router(x), k=2))
        return x + self.fc2(self.fc1(x, mix).tanh(), mix)


class Experts(TaskModel):
    """Vectors cut into tokens, through experts, to one head for each task."""

    class Config(TaskModel.Config):
        width: int = 6
        experts: int = 4
        remat: bool = False

    def __init__(self, config, tasks) -> None:
        super().__init__(config, tasks)
        self.stem = nn.Linear(config.width, 12)
        self.steps = nn.ModuleList(Chosen(4, config.experts) for _ in range(2))
        self.heads = nn.ModuleDict({n: task.head((FeatureSpec(4, 1),)) for n, task in tasks.items()})

    def blocks_in_order(self):
        return list(self.steps)

    def forward(self, batch, state=None):
        x = self.stem(batch.inputs["vector"].to(self.stem.weight.dtype)).unflatten(1, (3, 4))
        for step in self.steps:
            x = recompute(step, x) if self.config.remat else step(x)
        return self.heads[batch.task](x.mean(1)), None


def experts_run(**changes):
    return blocks_run(model=Experts.Config(), **changes)
