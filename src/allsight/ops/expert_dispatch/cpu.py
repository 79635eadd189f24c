"""Tokens sorted by expert, then one matrix product an expert: the library's product needs no kernel of ours.

Choices whose gate is 0 are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def forward(x: Tensor, weight: Tensor, bias: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
    """Compute `allsight.ops.expert_dispatch`.

    Raises:
        IndexError: An expert that there is not.
    """
    if experts.numel():
        low, high = (int(end) for end in experts.aminmax())
        if low < 0 or high >= len(weight):
            raise IndexError(
                f"expert_dispatch: experts: expected 0 to {len(weight) - 1}, got {low if low < 0 else high}"
            )
    out = x.new_zeros(len(x), weight.shape[1])
    for expert, rows, gate in _groups(experts, gates, len(weight)):
        mixed = gate[:, None] * torch.addmm(bias[expert], x[rows], weight[expert].T)
        out.index_add_(0, rows, mixed.to(out.dtype))
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, experts: Tensor, gates: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of all tensors; the choice itself has none."""
    grad_x, grad_weight, grad_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
    grad_gates = torch.zeros_like(gates)
    for slot in range(experts.shape[1]):
        choice = experts[:, slot]
        for expert, rows, _ in _groups(choice[:, None], torch.ones_like(gates[:, :1]), len(weight)):
            given, own = grad[rows], x[rows]
            through = (given * torch.addmm(bias[expert], own, weight[expert].T)).sum(1)
            grad_gates[rows, slot] = through.to(gates.dtype)
            given = (given * gates[rows, slot, None]).to(x.dtype)
            grad_x.index_add_(0, rows, given @ weight[expert])
            grad_weight[expert] += given.T @ own
            grad_bias[expert] += given.sum(0)
    return grad_x, grad_weight, grad_bias, torch.zeros_like(experts), grad_gates


def _groups(experts: Tensor, gates: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each expert that somebody chose, its tokens and their gates."""
    flat, weights = experts.flatten(), gates.flatten()
    flat = flat.masked_fill(weights == 0, num_experts)
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=num_experts)[:num_experts].cumsum(0).tolist()
    first = 0
    for expert, end in enumerate(ends):
        if end > first:
            picked = order[first:end]
            yield expert, picked // experts.shape[1], weights[picked]
        first = end
