"""Outputs and gradients first: how much faster something wrong is does not interest anybody."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from allsight.launch.bench.cases import OURS, Case, Inputs, Way

ALLOWED = 1e-4
"""Largest difference of float32 numbers, relative to the largest number of their tensor."""


@dataclass(frozen=True)
class Difference:
    """How far a tensor of ours is from another implementation's.

    Args:
        case: Name of the case.
        tensor: "output" or "grad of value", ...
        against: Whose tensor.
        softmax: Whether the softmax was computed inside the operator.
        relative: Largest difference over the largest number; infinite if one is not finite.
    """

    case: str
    tensor: str
    against: str
    softmax: bool
    relative: float

    @property
    def is_allowed(self) -> bool:
        return self.relative <= ALLOWED

    def __str__(self) -> str:
        softmax = " with softmax" if self.softmax else ""
        return (
            f"{self.case}{softmax}: {self.tensor} differs from that of {self.against} by "
            f"{self.relative:.1e} of its largest value (allowed: {ALLOWED:.0e})"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "allowed": ALLOWED}


def compare(case: Case) -> list[Difference]:
    """Every output and gradient of ours against that of every other way, with and without softmax."""
    ways = case.ways()
    ours = ways.pop(OURS)
    found = []
    for softmax in (False, True):
        inputs = with_gradients(case.make(not softmax))
        own = _outputs_and_grads(case, ours, inputs, softmax)
        for name, way in ways.items():
            for tensor, expected in _outputs_and_grads(case, way, inputs, softmax).items():
                relative = _relative(own[tensor], expected)
                found.append(Difference(case.name, tensor, name, softmax, relative))
    return found


def with_gradients(inputs: Inputs) -> Inputs:
    """The same numbers as leaves that need gradients."""
    value, places, weights = (tensor.detach().requires_grad_() for tensor in inputs)
    return value, places, weights


def gradient_like(output: Tensor) -> Tensor:
    """A gradient of the output, always the same."""
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(2))


def _outputs_and_grads(case: Case, way: Way, inputs: Inputs, softmax: bool) -> dict[str, Tensor]:
    output = way(*inputs, softmax)
    grad = gradient_like(output)
    names = ["output", *(f"grad of {name}" for name in case.tensors)]
    return dict(zip(names, [output.detach(), *torch.autograd.grad(output, inputs, grad)], strict=True))


def _relative(ours: Tensor, expected: Tensor) -> float:
    if ours.shape != expected.shape:
        return float("inf")
    largest = float(expected.abs().max())
    difference = float((ours - expected).abs().max()) / max(largest, 1e-30)
    return difference if difference == difference else float("inf")
