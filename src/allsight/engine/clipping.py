"""Bounds on gradients, so that one bad batch cannot throw the weights far away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
        self._all = list(parameters.values())
        self._adaptive = [p for name, p in parameters.items() if spared.isdisjoint(name.split("."))]

    @torch.no_grad()
    def __call__(self, norm: Tensor) -> None:
        """Bound the gradients where they are.

        Args:
            norm: Of all gradients together.
        """
        config = self._config
        if config.clip_norm is not None:
            used = [p for p in self._all if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(used, config.clip_norm, norm, foreach=True)
        elif config.clip_value is not None:
            gradients = [p.grad for p in self._all if p.grad is not None]
            torch._foreach_clamp_max_(gradients, config.clip_value)
            torch._foreach_clamp_min_(gradients, -config.clip_value)
        elif config.clip_adaptive is not None:
            for parameter in self._adaptive:
                if parameter.grad is not None:
                    _clip_units(parameter, parameter.grad, config.clip_adaptive)


def _clip_units(weight: Tensor, gradient: Tensor, share: float) -> None:
    """Scale the gradient of each unit down to `share` of the norm of its weights."""
    axes = tuple(range(1, weight.ndim)) if weight.ndim > 1 else None
    size = torch.linalg.vector_norm(weight, dim=axes, keepdim=True).clamp_min(_SMALLEST_NORM)
    given = torch.linalg.vector_norm(gradient, dim=axes, keepdim=True)
    gradient.mul_((share * size / given.clamp_min(torch.finfo(given.dtype).tiny)).clamp_max(1.0))
