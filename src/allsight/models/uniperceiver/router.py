"""Choosing experts by task, modality, attributes, token, or token in its context.

Letters: b rows, t tokens, m runs, e experts, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, ConfigError
from allsight.layers import RunMix, TokenMix, balance_loss, choose_experts, limit_load, router_z_loss
from allsight.layers.experts import Mix
from allsight.models.uniperceiver.conditions import MODALITIES, NUM_ATTRIBUTES, Conditions

_EPS = 1e-5


class ExpertSettings(Config):
    """How experts are placed and chosen.

    Attributes:
        count: Experts a group; every linear layer of a block is one group.
        top_k: How many of them a token gets.
        routing: What they are chosen by. `attribute`, `modality` and `task` do not look at the data: runs of
            tokens share their experts, which merge into one matrix. `token` and `context` (the token and a
            mean of what all tokens see) do.
        every: Blocks 0, every, 2 every ... have experts.
        noise: Standard deviation of the noise on the logits in training, times 1 / count.
        activation: GELU between the projection of the attributes and their norm.
        capacity: Room of an expert in even shares (`token`, `context`); None drops nothing. What a token gets
            then depends on the others of its micro-batch.
        balance_loss: Weight of the loss that spreads tokens over experts (`token`, `context`).
        z_loss: Weight of the loss that keeps logits small (`token`, `context`).
        bias_step: Balance without a loss: after each step the bias of experts that got more than their share
            falls by so much, that of others rises; 0 leaves it off (`token`, `context`).
    """

    count: int = Field(default=8, ge=2)
    top_k: int = Field(default=2, ge=1)
    routing: Literal["attribute", "modality", "task", "token", "context"] = "attribute"
    every: int = Field(default=2, ge=1)
    noise: float = Field(default=1.0, ge=0)
    activation: bool = False
    capacity: float | None = Field(default=None, gt=0)
    balance_loss: float = Field(default=0.0, ge=0)
    z_loss: float = Field(default=0.0, ge=0)
    bias_step: float = Field(default=0.0, ge=0)

    @property
    def looks_at_data(self) -> bool:
        """Whether tokens of one run may get different experts."""
        return self.routing in ("token", "context")


@dataclass
class Observed:
    """What a router did in the last forward passes, for losses, balancing and people."""

    load: Tensor
    entropy: Tensor
    balance: Tensor
    z: Tensor
    passes: int = 1


class Router(nn.Module):
    """Chooses the experts of one part of a block; its two linear layers share the choice.

    Args:
        channels: Width of the tokens.
        settings: How.
        tasks: Names of the tasks (`routing="task"`).
    """

    bias: Float[Tensor, " e"]

    def __init__(self, channels: int, settings: ExpertSettings, tasks: Sequence[str] = ()) -> None:
        super().__init__()
        self.settings, self.tasks = settings, tuple(tasks)
        self.embed: nn.Module | None = None
        if settings.routing == "attribute":
            self.embed = nn.Linear(NUM_ATTRIBUTES, channels)
        elif settings.routing == "modality":
            self.embed = nn.Embedding(len(MODALITIES), channels)
        elif settings.routing == "task":
            self.embed = nn.Embedding(max(1, len(self.tasks)), channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS) if self.embed is not None else None
        width = 2 * channels if settings.routing == "context" else channels
        self.choose = nn.Linear(width, settings.count, bias=False)
        if settings.looks_at_data:
            self.register_buffer("bias", torch.zeros(settings.count))
        self.no_weight_decay = {"choose.weight", "embed.weight"}
        self._observed: list[Observed] = []

    def forward(
        self, x: Float[Tensor, "b t c"], conditions: Conditions, summary: Float[Tensor, "b c"] | None = None
    ) -> Mix:
        """The experts of each token.

        Args:
            x: Tokens, normalised.
            conditions: What they are.
            summary: Mean of what all tokens see (`context`); None computes it from `x`.
        """
        settings = self.settings
        if self.embed is not None:
            logits = self._logits(self._described(conditions))
            experts, gates = choose_experts(logits, k=settings.top_k, noise=self._noise(logits))
            self._note(logits, experts)
            return RunMix(conditions.runs, torch.zeros_like(logits).scatter(1, experts, gates))
        features = x
        if settings.routing == "context":
            summary = summarise(x, conditions.is_open) if summary is None else summary
            features = torch.cat([x, summary[:, None].expand_as(x)], dim=-1)
        logits = self._logits(features)
        bias = self.bias if settings.bias_step > 0 else None
        experts, gates = choose_experts(logits, k=settings.top_k, noise=self._noise(logits), bias=bias)
        real = conditions.is_real
        if real is None or not self.training:
            self._note(logits.flatten(0, 1), experts.flatten(0, 1))
        else:
            self._note(logits[real], experts[real])
        mix = TokenMix(experts, gates)
        if settings.capacity is None:
            return mix
        return limit_load(mix, settings.count, settings.capacity, real)

    def gates(self, conditions: Conditions) -> Float[Tensor, "m e"]:
        """The mix of each run, where the choice does not look at the data."""
        mix = self(self.choose.weight.new_empty(0, 0, 0), conditions)
        assert isinstance(mix, RunMix)
        return mix.gates

    def take_observed(self) -> list[Observed]:
        """What was observed since the last call."""
        observed, self._observed = self._observed, []
        return observed

    @torch.no_grad()
    def balance(self, load: Float[Tensor, " e"]) -> None:
        """Move the bias of the choice against the load (arXiv:2408.15664, algorithm 1)."""
        self.bias += self.settings.bias_step * (load.mean() - load).sign()

    def _described(self, conditions: Conditions) -> Float[Tensor, "m c"]:
        assert self.embed is not None
        assert self.norm is not None
        weight = self.choose.weight
        if self.settings.routing == "attribute":
            described = self.embed(conditions.attributes.to(weight))
            return self.norm(F.gelu(described) if self.settings.activation else described)
        if self.settings.routing == "modality":
            numbers = list(conditions.modalities)
        else:
            task = conditions.purpose.task
            if task not in self.tasks:
                raise ConfigError(
                    f"routing=task: no experts for task '{task}', which the model was not trained on; "
                    f"routing=attribute has them for any task"
                )
            numbers = [self.tasks.index(task)] * len(conditions.runs)
        return self.norm(self.embed(torch.tensor(numbers, device=weight.device)))

    def _logits(self, features: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead e"]:
        # In 16 bits nearby logits would fall together, and the choice with them.
        dtype = torch.promote_types(self.choose.weight.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.to(dtype), self.choose.weight.to(dtype))

    def _noise(self, logits: Tensor) -> Tensor | None:
        if not self.training or self.settings.noise == 0:
            return None
        return torch.randn_like(logits) * (self.settings.noise / self.settings.count)

    def _note(self, logits: Float[Tensor, "n e"], experts: Tensor) -> None:
        if not self.training:
            return
        probabilities = logits.softmax(-1)
        settings, zero = self.settings, logits.new_zeros(())
        uses_losses = settings.looks_at_data
        self._observed.append(
            Observed(
                F.one_hot(experts.detach(), settings.count).sum((0, 1)).to(logits) / experts.numel(),
                -(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1).mean().detach(),
                balance_loss(probabilities, experts) if uses_losses and settings.balance_loss else zero,
                router_z_loss(logits) if uses_losses and settings.z_loss else zero,
            )
        )


def summarise(x: Float[Tensor, "b t c"], is_open: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b c"]:
    """Mean of the tokens that all others see; words still to come must not show through it."""
    if is_open is None:
        return x.mean(1)
    weight = is_open.to(x)[:, :, None]
    return (x * weight).sum(1) / weight.sum(1).clamp_min(1)
