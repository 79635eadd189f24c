"""Tokens travel to the ranks that hold their experts, and what comes of them travels back.

Letters: n tokens of this rank, k experts a token, e experts of this rank, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from allsight.ops import expert_dispatch


def dispatch_over_ranks(
    x: Float[Tensor, "n c"],
    weight: Float[Tensor, "e out c"],
    bias: Float[Tensor, "e out"],
    experts: Int64[Tensor, "n k"],
    gates: Float[Tensor, "n k"],
    *,
    group: dist.ProcessGroup,
) -> Float[Tensor, "n out"]:
    """Compute `allsight.ops.expert_dispatch` where each rank of a group holds as many of the experts.

    All ranks of the group call this equally often, forward and backward, be it with no tokens. A choice is
    sent once, in the type of `x`, and one whose gate is 0 is not sent; its gate gets no gradient. The
    gradients of this rank's experts are the sums of what all ranks' losses say about them.

    Args:
        x: Tokens of this rank.
        weight: Of this rank's experts: rank r of the group holds those from r e to (r + 1) e - 1.
        bias: Likewise.
        experts: Which of all experts each token gets, different ones.
        gates: How much of each.
        group: The ranks that share the experts.
    """
    ranks, own, out = dist.get_world_size(group), len(weight), weight.shape[1]
    chosen, k = experts.flatten(), experts.shape[1]
    sent = gates.detach().flatten().nonzero()[:, 0]
    sent = sent[chosen[sent].argsort(stable=True)]
    to_each = torch.bincount(chosen[sent], minlength=ranks * own).view(ranks, own)
    from_each = torch.empty_like(to_each)
    dist.all_to_all_single(from_each, to_each, group=group)
    # The one place where the host waits for the device: it must know the sizes of the messages.
    leaving, coming = torch.stack([to_each.sum(1), from_each.sum(1)]).tolist()

    arrived = _Exchange.apply(x[sent // k], leaving, coming, group)
    numbers = torch.arange(own, device=x.device).repeat(ranks)
    numbers = numbers.repeat_interleave(from_each.flatten(), output_size=sum(coming))[:, None]
    done = expert_dispatch(arrived, weight, bias, numbers, torch.ones_like(numbers, dtype=x.dtype))
    back = _Exchange.apply(done, coming, leaving, group)

    laid = back.new_zeros(len(chosen), out).index_copy(0, sent, back).view(*experts.shape, out)
    return (gates[:, :, None] * laid).sum(1).to(x.dtype)


class _Exchange(torch.autograd.Function):
    """Rows sent to each rank in turn, for rows received from each in turn; gradients go the same way back."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, leaving: Sequence[int], coming: Sequence[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.call = coming, leaving, group
        received = rows.new_empty(sum(coming), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), list(coming), list(leaving), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(grad_outputs[0], *ctx.call), None, None, None
