"""Prompt tuning: a trained model learns a task by a few tokens, its norms and a bias; all else stays.

Source: Uni-Perceiver, arXiv:2112.01522, section 3.4 (what is trained, and how much of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config


class PromptSettings(Config):
    """What prompt tuning trains. Everything else keeps the weights that training starts from.

    Attributes:
        length: Tokens that each block sees before all others.
        sides: Queries and targets have tokens of their own (the paper), share them (the released code), or
            only queries have some; then, without `norms` and `spe`, features of candidates do not change.
        norms: Also train the norms; those of pictures and texts go apart for it.
        spe: Also train a bias on <SPE>.
        heads: Tasks whose classes get a linear layer beside the similarity; it starts at zero.
    """

    length: int = Field(default=10, ge=0)
    sides: Literal["apart", "shared", "queries"] = "apart"
    norms: bool = True
    spe: bool = True
    heads: tuple[str, ...] = ()


class Prompts(nn.Module):
    """Learnt tokens in front of what each block attends to; they give keys and values, and ask nothing.

    Args:
        settings: How many, and for whom.
        depth: Blocks.
        channels: Width of the tokens.
    """

    def __init__(self, settings: PromptSettings, depth: int, channels: int) -> None:
        super().__init__()
        self.sides = settings.sides
        sets = 2 if settings.sides == "apart" else 1
        self.tokens = nn.Parameter(0.02 * torch.randn(sets, depth, settings.length, channels))

    def of_block(self, number: int, *, is_target: bool) -> Float[Tensor, "p c"] | None:
        """The tokens that a block sees in a query or in a target; None: none."""
        if self.sides == "queries" and is_target:
            return None
        chosen = int(is_target) if self.sides == "apart" else 0
        return self.tokens[chosen, number]


class LinearHead(nn.Module):
    """alpha * similarity / temperature + w f + b, with alpha 1 and w, b zero at first.

    Args:
        channels: Size of the query's feature f.
        num_classes: Candidates.
    Source: fundamentalvision/Uni-Perceiver (the sum of logits; the paper prints a sum of probabilities).
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(()))
        self.weight = nn.Parameter(torch.zeros(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self, logits: Float[Tensor, "*lead s"], features: Float[Tensor, "*lead c"]
    ) -> Float[Tensor, "*lead s"]:
        return self.alpha * logits + F.linear(features, self.weight, self.bias)


def train_only_prompts(model: nn.Module, settings: PromptSettings) -> None:
    """Freeze all of a Uni-Perceiver but what `settings` trains."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_part(name) in ("prompts", "spe", "heads"))
        if settings.norms and _part(name) == "norms":
            parameter.requires_grad_(True)


def trained_parts(model: nn.Module) -> Mapping[str, int]:
    """How many numbers are trained: `prompts`, `norms`, `spe`, `heads` and `rest`, those there are."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[_part(name)] = counts.get(_part(name), 0) + parameter.numel()
    return counts


def _part(name: str) -> str:
    if name.startswith("heads."):
        return "heads"
    if ".prompts." in name:
        return "prompts"
    if name.endswith("spe_bias"):
        return "spe"
    owner = name.rpartition(".")[0].rpartition(".")[2]
    is_router = "_router." in name or "_spare." in name
    is_norm = owner in ("norm", "norm1", "norm2", "vision_norm", "output_norm") and ".patches." not in name
    return "norms" if is_norm and not is_router else "rest"
