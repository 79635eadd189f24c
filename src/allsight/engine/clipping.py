"""Bounds on gradients, so that one bad batch cannot throw the weights far away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from allsight.engine.parallel.shards import local_part, norms

_SMALLEST_NORM = 1e-3
"""Of weights: a unit that starts at zero could otherwise never move."""


class Clipping:
    """Bounds the gradients of one step in the way that the optimiser's settings name, or leaves them alone.

    - `clip_norm`: all gradients together keep their direction and get at most this norm.
    - `clip_value`: each number is kept within plus and minus this value.
    - `clip_adaptive`: each unit's gradient gets at most this share of the norm of the unit's weights, as in
      NFNets (Brock et al., arXiv:2102.06171, eq. 3). A unit is a row of a matrix or a kernel of one output
      channel; vectors are one unit. Heads are left out, as there.

    Args:
        config: `Optimiser.Config`.
        parameters: Name -> parameter, of all that is trained.
    """

    def __init__(self, config: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._config = config
        spared = set(config.clip_adaptive_spares)
        self._adaptive = [p for name, p in parameters.items() if spared.isdisjoint(name.split("."))]

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], norm: Tensor) -> None:
        """Bound the gradients where they are.

        Args:
            gradients: Of the parameters, as far as they have one.
            norm: Of all gradients together, over all shards.
        """
        config = self._config
        if config.clip_norm is not None:
            # As torch.nn.utils.clip_grads_with_norm_, on what this rank holds.
            scale = torch.clamp(config.clip_norm / (norm + 1e-6), max=1.0)
            for device, mine in _by_device(gradients).items():
                torch._foreach_mul_(mine, scale.to(device))
        elif config.clip_value is not None:
            for mine in _by_device(gradients).values():
                torch._foreach_clamp_max_(mine, config.clip_value)
                torch._foreach_clamp_min_(mine, -config.clip_value)
        elif config.clip_adaptive is not None:
            _clip_units([p for p in self._adaptive if p.grad is not None], config.clip_adaptive)


def _by_device(gradients: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    """What this rank holds of the gradients."""
    found: dict[torch.device, list[Tensor]] = {}
    for gradient in map(local_part, gradients):
        found.setdefault(gradient.device, []).append(gradient)
    return found


def _clip_units(parameters: Sequence[nn.Parameter], share: float) -> None:
    """Scale the gradient of each unit down to `share` of the norm of its weights."""
    # Rows lie whole on one rank; a vector is one unit, whose parts all ranks hold.
    spread = [p for p in parameters if p.ndim <= 1 and isinstance(p, DTensor)]
    found = norms([[t] for p in spread for t in (p.detach(), _gradient(p))])
    sizes = {id(p): pair for p, *pair in zip(spread, found[::2], found[1::2], strict=True)}
    for parameter in parameters:
        weight, gradient = local_part(parameter.detach()), local_part(_gradient(parameter))
        if id(parameter) in sizes:
            size, given = sizes[id(parameter)]
        else:
            axes = tuple(range(1, weight.ndim)) if weight.ndim > 1 else None
            size = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
            given = torch.linalg.vector_norm(gradient, dim=axes, keepdim=True)
        size, given = size.clamp_min(_SMALLEST_NORM), given.clamp_min(torch.finfo(given.dtype).tiny)
        gradient.mul_((share * size / given).clamp_max(1.0))


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
