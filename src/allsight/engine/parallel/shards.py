"""Tensors of which each rank holds a part: norms over all parts, and the part itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, as a plain tensor with the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_apart(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser in which all parameters are sharded over the same ranks, or none is.

    PyTorch's optimisers change the parameters of a group together, and cannot do so with several kinds.
    """
    found = []
    for group in groups:
        kinds: dict[DeviceMesh | None, list[Tensor]] = {}
        for parameter in group["params"]:
            kinds.setdefault(_mesh_of(parameter), []).append(parameter)
        found += [{**group, "params": chosen} for chosen in kinds.values()]
    return found


def _mesh_of(tensor: Tensor) -> DeviceMesh | None:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, over all shards; the same on every rank that calls it."""
    return norms([tensors])[0]


@torch.no_grad()
def norms(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The 2-norm of each group of tensors, over all shards. With shards, all ranks call this alike.

    One message for all groups, and one more for experts that ranks share. Copies of a shard on other ranks
    (hsdp) count once.
    """
    # All that is sharded alike, by group.
    layouts: dict[tuple[DeviceMesh, tuple[Placement, ...]], list[list[Tensor]]] = {}
    whole: list[list[Tensor]] = [[] for _ in groups]
    example: DTensor | None = None
    for place, tensors in enumerate(groups):
        for tensor in tensors:
            if isinstance(tensor, DTensor):
                example = tensor if example is None else example
                key = (tensor.device_mesh, tensor.placements)
                layouts.setdefault(key, [[] for _ in groups])[place].append(tensor.to_local())
            else:
                whole[place].append(tensor)
    if example is None:
        return [torch.nn.utils.get_total_norm(list(tensors)) for tensors in groups]
    squares = torch.stack([_square(found, example) for found in whole])
    for (mesh, placements), shards in layouts.items():
        mine = torch.stack([_square(found, example) for found in shards])
        for axis, placement in enumerate(placements):
            if isinstance(placement, Shard):
                dist.all_reduce(mine, group=mesh.get_group(axis))
        squares += mine
    return list(squares.sqrt().to(torch.promote_types(example.dtype, torch.float32)))


def _square(tensors: Sequence[Tensor], like: DTensor) -> Tensor:
    """Squared in float64, where float32 could overflow."""
    norm = torch.nn.utils.get_total_norm([t for t in tensors if t.numel()])
    return norm.to(like.to_local().device, torch.float64).square()
