"""Experts split over ranks: each holds some of them, and tokens travel (expert parallelism)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from allsight.layers.experts import ExpertLinear


def layers_to_split(model: nn.Module) -> list[ExpertLinear]:
    """The layers whose experts ranks can share: those in which tokens choose for themselves."""
    return [module for module in model.modules() if isinstance(module, ExpertLinear) and module.per_token]


def split_experts(model: nn.Module, mesh: DeviceMesh) -> tuple[ExpertLinear, ...]:
    """Leave each rank its part of the experts that tokens choose for themselves; all ranks call this alike.

    Their weights become `DTensor`s, split along the experts: optimisers, `state_dict` and distributed
    checkpoints treat them as whole ones. The gradient of a part is the sum over the losses of the ranks that
    share the experts; sums over copies are the caller's. Experts that runs of tokens share
    (`ExpertLinear.per_token` is false) merge into one matrix and stay whole everywhere.

    Args:
        model: With the same weights on all ranks.
        mesh: Its last axis: ranks that share the experts. Axes before: copies.

    Returns:
        The layers that were split.

    Raises:
        ValueError: The ranks cannot share the experts of a layer evenly.
    """
    ranks, group = mesh.size(mesh.ndim - 1), mesh.get_group(mesh.ndim - 1)
    layers = layers_to_split(model)
    for layer in layers:
        if len(layer.weight) % ranks:
            raise ValueError(f"{len(layer.weight)} experts cannot be shared evenly by {ranks} ranks")
    placements: list[Placement] = [*(Replicate() for _ in range(mesh.ndim - 1)), Shard(0)]
    for layer in layers:
        for name in ("weight", "bias"):
            whole = getattr(layer, name)
            # A copy, or the whole tensor would stay in memory behind its part.
            part = whole.detach().chunk(ranks)[mesh.get_local_rank(mesh.ndim - 1)].clone()
            split = DTensor.from_local(part, mesh, placements, run_check=False)
            setattr(layer, name, nn.Parameter(split, requires_grad=whole.requires_grad))
        layer.group = group
    return tuple(layers)


@contextmanager
def whole_experts(layers: tuple[ExpertLinear, ...]) -> Iterator[None]:
    """Within, each rank holds all experts of split layers and may use them alone, without gradients.

    All ranks enter alike.
    """
    with torch.no_grad():
        for layer in layers:
            layer.gathered = _whole(layer.weight), _whole(layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            layer.gathered = None


def _whole(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor()
