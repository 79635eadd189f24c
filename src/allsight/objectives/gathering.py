"""Candidates that lie on several ranks: rows gathered with their gradient, groups, slices of a large set.

Letters: b rows of this rank, g rows of a group, s candidates of a set, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Integer, Shaped
from torch import Tensor


def num_ranks() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Shaped[Tensor, " b *rest"]) -> Shaped[Tensor, " all_b *rest"]:
    """The rows of all ranks, in the order of ranks; every rank must bring as many and call it equally often.

    The gradient of a row is the sum of what all ranks' losses say about it: with gradients averaged over
    ranks and each rank's loss scaled by the number of ranks, as the engine does, it is that of one process
    with all rows.
    """
    if num_ranks() == 1:
        return rows
    return _GatherRows.apply(rows)


@torch.no_grad()
def sum_of_rows(rows: Shaped[Tensor, " b *rest"]) -> tuple[Shaped[Tensor, " *rest"], Float[Tensor, ""]]:
    """The sum over the rows of all ranks, in float32 at least, and how many they are; no gradient.

    Ranks may bring different numbers of rows, but must call it equally often.
    """
    total = rows.detach().sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))
    count = torch.tensor(float(len(rows)), dtype=total.dtype, device=total.device)
    if num_ranks() > 1:
        dist.all_reduce(total)
        dist.all_reduce(count)
    return total, count


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(num_ranks())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.count
        return total[first : first + ctx.count]


def group_candidates(
    targets: Shaped[Tensor, " b *rest"], *, group_size: int, group_ranks: int = 1
) -> tuple[Shaped[Tensor, "n g *rest"], Integer[Tensor, " b"]]:
    """The targets that each group chooses among, and the place of each row's own.

    Args:
        targets: One a row.
        group_size: Consecutive rows that see each other.
        group_ranks: Neighbouring ranks over which one group is spread, see `Batch.group_ranks`.
    Returns:
        The candidates of each group on this rank (n = 1 where groups are spread; row i belongs to group
        i // (b / n)), and which of them is row i's.
    Raises:
        ValueError: Rows do not make whole groups.
    """
    count = len(targets)
    if group_ranks > 1:
        if count * group_ranks != group_size:
            raise ValueError(
                f"groups of {group_size} on {group_ranks} ranks: expected {group_size / group_ranks:g} rows "
                f"a rank, got {count}"
            )
        place = dist.get_rank() % group_ranks
        begin = (dist.get_rank() - place) * count
        own = gather_rows(targets)[begin : begin + group_size]
        return own[None], place * count + torch.arange(count, device=targets.device)
    if count % group_size:
        raise ValueError(f"{count} rows do not make whole groups of {group_size}")
    groups = targets.unflatten(0, (count // group_size, group_size))
    return groups, torch.arange(count, device=targets.device) % group_size


def encode_shared(
    encode: Callable[[Tensor], Float[Tensor, "part d"]], count: int, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "s d"]:
    """Features of a set that is too large for one rank: each encodes a slice, all get all.

    Padding (the last candidate again) makes slices equal; what it computes is cut off and gets no gradient.

    Args:
        encode: From indices of candidates to their features; every rank calls it once.
        count: Candidates of the set.
        device: Where the indices are.
    """
    part = -(-count // num_ranks())
    rank = dist.get_rank() if num_ranks() > 1 else 0
    indices = torch.arange(rank * part, (rank + 1) * part, device=device).clamp_max(count - 1)
    return gather_rows(encode(indices))[:count]


def equal_rows(
    rows: Shaped[Tensor, "*lead a t"], others: Shaped[Tensor, "*lead s u"], *, fill: int = 0
) -> Shaped[Tensor, "*lead a s"]:
    """Which rows (token ids, keys) say the same; the shorter kind is filled up with `fill`."""
    length = max(rows.shape[-1], others.shape[-1])
    a = F.pad(rows, (0, length - rows.shape[-1]), value=fill)
    b = F.pad(others, (0, length - others.shape[-1]), value=fill)
    return (a[..., :, None, :] == b[..., None, :, :]).all(-1)
