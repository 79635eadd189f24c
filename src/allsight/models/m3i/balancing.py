"""How much each target counts in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, Configured, Family
from allsight.objectives import num_ranks

BALANCERS = Family(
    "balancer",
    {
        "fixed": "allsight.models.m3i.balancing:Fixed",
        "gradient_matching": "allsight.models.m3i.balancing:GradientMatching",
        "homoscedastic": "allsight.models.m3i.balancing:Homoscedastic",
    },
)


class Balancer(nn.Module, Configured):
    """Base of all balancers; built as `Class(config, names, learns_scale)`.

    Args:
        config: Its settings.
        names: The targets.
        learns_scale: Those among them whose posterior has a learnt scale of its own.
    """

    class Config(Config):
        pass

    family: ClassVar[Family | None] = BALANCERS

    def __init__(self, config: Any, names: Sequence[str], learns_scale: Sequence[bool]) -> None:
        super().__init__()
        self.config, self.names, self.learns_scale = config, tuple(names), tuple(learns_scale)

    def forward(self, name: str, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What a target's weighted loss becomes."""
        return loss

    def wants_norms(self, step: int) -> bool:
        """Whether it wants to see the gradients' norms of this step; the same on all ranks."""
        return False

    def see(self, norms: Mapping[str, Float[Tensor, ""]]) -> None:
        """Take down the norms of the targets' gradients at the representation."""

    def advance(self, step: int) -> None:
        """What changes once per optimiser step."""

    def numbers(self) -> dict[str, Tensor]:
        """Factor of each target, for monitors."""
        return {}


class Fixed(Balancer):
    """The weights of the recipe as they are."""


class Homoscedastic(Balancer):
    """exp(-s) loss + s / 2 with a learnt s for each target whose posterior learns no scale itself.

    With s = log(2 variance) this is the Gaussian's likelihood with its normaliser.

    Source: Kendall et al., arXiv:1705.07115, section 3.
    """

    class Config(Balancer.Config):
        """Settings: s is held within these limits."""

        lowest: float = -4.0
        highest: float = 4.0

    def __init__(self, config: Any, names: Sequence[str], learns_scale: Sequence[bool]) -> None:
        super().__init__(config, names, learns_scale)
        self.log_variance = nn.Parameter(torch.zeros(len(names)))

    def forward(self, name: str, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        place = self.names.index(name)
        if self.learns_scale[place]:
            return loss
        s = self.log_variance[place]
        return (-s).exp() * loss + s / 2

    def advance(self, step: int) -> None:
        with torch.no_grad():
            self.log_variance.clamp_(self.config.lowest, self.config.highest)

    def numbers(self) -> dict[str, Tensor]:
        return dict(zip(self.names, (-self.log_variance.detach()).exp().unbind(), strict=True))


class GradientMatching(Balancer):
    """Pull the norms of the targets' gradients at the representation together.

    factor <- factor * (mean norm / norm) ** strength, from running means of the norms over all ranks.
    """

    class Config(Balancer.Config):
        """Settings.

        Attributes:
            strength: 0 changes nothing, 1 makes norms equal.
            every_steps: Steps between changes.
            measure_every: Steps between measurements, which cost a small backward pass a target.
            memory: Weight of the old mean in a measurement.
            limit: Factors stay between 1 / limit and limit.
        """

        strength: float = Field(default=0.5, ge=0, le=1)
        every_steps: int = Field(default=50, ge=1)
        measure_every: int = Field(default=10, ge=1)
        memory: float = Field(default=0.99, ge=0, lt=1)
        limit: float = Field(default=100.0, gt=1)

    factors: Tensor
    means: Tensor
    weight: Tensor

    def __init__(self, config: Any, names: Sequence[str], learns_scale: Sequence[bool]) -> None:
        super().__init__(config, names, learns_scale)
        self.register_buffer("factors", torch.ones(len(names)))
        self.register_buffer("means", torch.zeros(len(names)))
        self.register_buffer("weight", torch.zeros(len(names)))

    def forward(self, name: str, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return loss * self.factors[self.names.index(name)]

    def wants_norms(self, step: int) -> bool:
        return step % self.config.measure_every == 0

    @torch.no_grad()
    def see(self, norms: Mapping[str, Float[Tensor, ""]]) -> None:
        """Every rank calls this with the norms of the same targets; targets without a row are left out."""
        zero = self.means.new_zeros(())
        found = torch.stack([norms[name].to(zero) if name in norms else zero for name in self.names])
        seen = (found > 0).to(found)
        both = torch.stack([found, seen])
        if num_ranks() > 1:
            dist.all_reduce(both)
        mean, seen = both[0] / both[1].clamp_min(1), (both[1] > 0).to(found)
        old = 1 - (1 - self.config.memory) * seen
        self.means.copy_(old * self.means + (1 - old) * mean)
        self.weight.copy_(old * self.weight + (1 - old))

    @torch.no_grad()
    def advance(self, step: int) -> None:
        if (step + 1) % self.config.every_steps:
            return
        known = self.weight > 0
        if not bool(known.any()):
            return
        # Divided by the weight that the running mean has gathered, else early means are too small.
        norms = self.means / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
        wanted = norms[known].mean()
        step_factor = (wanted / norms.clamp_min(1e-12)) ** self.config.strength
        changed = (self.factors * step_factor).clamp(1 / self.config.limit, self.config.limit)
        self.factors.copy_(torch.where(known, changed, self.factors))

    def numbers(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.factors.unbind(), strict=True))
