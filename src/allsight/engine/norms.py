"""How large gradients and updates are in each part of a model: where trouble in training shows first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from allsight.config import Configured
from allsight.engine.parallel.shards import norms

_WHOLES = (Configured, nn.ModuleList, nn.ModuleDict)
"""Models and backbones are those modules that have a configuration of their own."""


class PartNorms:
    """Norms of the gradient, of the update and of the weights of each part of a model.

    Parts are what a person would name: stem, stages, downsamplings, heads. The tree of modules is followed
    down through whole models, backbones and lists; everything below them is one part.

    `before` and `after` stand around one optimiser step and cost a copy of the weights and a few reductions,
    so they are meant for some steps only. Where weights are sharded, all ranks call them.

    Args:
        model: The bare model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = dict(_parts(model, ""))
        self._weights: dict[str, list[Tensor]] = {}
        self._gradients: dict[str, Tensor] = {}

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, in the order of the model."""
        return tuple(self._parts)

    @contextmanager
    def around(self, looks: bool) -> Iterator[dict[str, float]]:
        """Around an optimiser step: the dict it gives is filled when the step is done, if `looks`."""
        values: dict[str, float] = {}
        if looks:
            self.before()
        yield values
        if looks:
            values |= self.after()

    @torch.no_grad()
    def before(self) -> None:
        """Take down gradients (not yet clipped) and weights; call it before the step."""
        self._weights, self._gradients = {}, {}
        used = {
            name: gradients
            for name, part in self._parts.items()
            if (gradients := [p.grad for p in part if p.grad is not None])
        }
        self._gradients = dict(zip(used, norms(list(used.values())), strict=True))
        self._weights = {name: [p.detach().clone() for p in self._parts[name]] for name in used}

    @torch.no_grad()
    def after(self) -> dict[str, float]:
        """What the step did: norms `PART/gradient` and `PART/weight`, `PART/update` as a share of the weight.

        The update is the norm of the change divided by the norm of the weights before; a part whose weights
        were all zero has none. Parts that the step did not use are left out.
        """
        changes = {name: _differences(self._parts[name], before) for name, before in self._weights.items()}
        weighed = norms([*self._weights.values(), *changes.values()])
        sizes: list[Tensor] = []
        for place, name in enumerate(self._weights):
            sizes += [self._gradients[name], weighed[place], weighed[len(changes) + place]]
        # One wait for the device.
        numbers = iter(torch.stack([size.to(torch.float32) for size in sizes]).tolist() if sizes else [])
        values: dict[str, float] = {}
        for name, gradient, weight, change in zip(self._weights, numbers, numbers, numbers, strict=False):
            values |= {f"{name}/gradient": gradient, f"{name}/weight": weight}
            if weight > 0:
                values[f"{name}/update"] = change / weight
        self._weights, self._gradients = {}, {}
        return values


def _differences(now: list[Tensor], before: list[Tensor]) -> list[Tensor]:
    return [p.detach() - q for p, q in zip(now, before, strict=True)]


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, list[Tensor]]]:
    if not isinstance(module, _WHOLES):
        trained: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if trained:
            yield name or "model", trained
        return
    own: list[Tensor] = [p for p in module.parameters(recurse=False) if p.requires_grad]
    if own:
        yield name or "model", own
    for child, inner in module.named_children():
        yield from _parts(inner, f"{name}.{child}" if name else child)
