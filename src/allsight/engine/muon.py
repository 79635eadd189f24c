"""Muon for the matrices of blocks, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from allsight.engine.optim import Decay, Optimiser
from allsight.layers.blocks import blocks_of


class Muon(Optimiser):
    """Muon (Jordan et al. 2024; Liu et al., arXiv:2502.16982): the momentum of a matrix is made orthogonal.

    It is given the weights of all `nn.Linear` inside the model's blocks. Stem, convolutions, heads,
    embeddings, biases, norms and other vectors are AdamW's. PyTorch computes the orthogonal matrix in
    bfloat16, so results repeat bit for bit on one machine but differ by roundings between numbers of ranks.
    """

    class Config(Optimiser.Config):
        momentum: float = Field(default=0.95, ge=0, lt=1)
        nesterov: bool = True
        """Look ahead along the momentum."""
        iterations: int = Field(default=5, ge=1)
        """Newton-Schulz iterations, each of which brings the matrix closer to an orthogonal one."""
        rate: Literal["adamw", "original"] = "adamw"
        """`adamw`: updates have the size of AdamW's, so that `lr` and decay serve both; `original`: as first
        published, where Muon needs a larger `lr` of its own."""
        betas: tuple[Decay, Decay] = (0.9, 0.999)
        """Of AdamW: decay of the running means of the gradient and of its square."""
        eps: float = Field(default=1e-8, gt=0)
        """Of AdamW: added to the root of the mean square before dividing by it."""

    def sort(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        matrices = {
            id(module.weight)
            for block in blocks_of(model)
            for module in block.modules()
            if isinstance(module, nn.Linear)
        }
        found = []
        for group in groups:
            for is_matrix in (True, False):
                chosen = [p for p in group["params"] if (id(p) in matrices) == is_matrix]
                if chosen:
                    by = "muon" if is_matrix else "adamw"
                    found.append({**group, "params": chosen, "by": by, "name": f"{group['name']}, {by}"})
        return found

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        c = self.config
        return _Both(
            groups,
            lr,
            muon=lambda own: torch.optim.Muon(
                own,
                lr=lr,
                momentum=c.momentum,
                nesterov=c.nesterov,
                ns_steps=c.iterations,
                adjust_lr_fn="match_rms_adamw" if c.rate == "adamw" else "original",
            ),
            adamw=lambda own: torch.optim.AdamW(own, lr=lr, betas=c.betas, eps=c.eps, foreach=True),
        )


class _Both(torch.optim.Optimizer):
    """Two optimisers that share groups and state with this one, which stands for both."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        **makers: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    ) -> None:
        super().__init__(groups, {"lr": lr})
        self._parts: list[torch.optim.Optimizer] = []
        for by, make in makers.items():
            own = [group for group in self.param_groups if group["by"] == by]
            if own:
                part = make(own)
                part.state = self.state
                self._parts.append(part)

    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        for part in self._parts:
            part.step()
