"""Tensors of which each rank holds a part: norms over all parts, and the part itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, as a plain tensor with the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_apart(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser in which every parameter is sharded or none is.

    PyTorch's optimisers change the parameters of a group together, and cannot do so with both kinds at once.
    """
    found = []
    for group in groups:
        for kind in (True, False):
            chosen = [p for p in group["params"] if isinstance(p, DTensor) == kind]
            if chosen:
                found.append({**group, "params": chosen})
    return found


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, over all shards; the same on every rank that calls it."""
    return norms([tensors])[0]


@torch.no_grad()
def norms(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The 2-norm of each group of tensors, over all shards. With shards, all ranks call this alike.

    One message for all groups. Copies of a shard on other ranks (hsdp) count once.
    """
    shards = [[t for t in tensors if isinstance(t, DTensor)] for tensors in groups]
    example = next((t for found in shards for t in found), None)
    if example is None:
        return [torch.nn.utils.get_total_norm(list(tensors)) for tensors in groups]
    mine = torch.stack([_square([t.to_local() for t in found], example) for found in shards])
    for axis, placement in enumerate(example.placements):
        if isinstance(placement, Shard):
            dist.all_reduce(mine, group=example.device_mesh.get_group(axis))
    whole = [[t for t in tensors if not isinstance(t, DTensor)] for tensors in groups]
    mine += torch.stack([_square(found, example) for found in whole])
    return list(mine.sqrt().to(torch.promote_types(example.dtype, torch.float32)))


def _square(tensors: Sequence[Tensor], like: DTensor) -> Tensor:
    """Squared in float64, where float32 could overflow."""
    norm = torch.nn.utils.get_total_norm([t for t in tensors if t.numel()])
    return norm.to(like.to_local().device, torch.float64).square()
