"""Every expert on every token: slow and obvious."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def expert_dispatch_reference(
    x: Float[Tensor, "n c"],
    weight: Float[Tensor, "e out c"],
    bias: Float[Tensor, "e out"],
    experts: Int64[Tensor, "n k"],
    gates: Float[Tensor, "n k"],
) -> Float[Tensor, "n out"]:
    """Compute `allsight.ops.expert_dispatch`."""
    everything = torch.einsum("nc,eoc->neo", x, weight) + bias
    chosen = everything.gather(1, experts[:, :, None].expand(-1, -1, everything.shape[2]))
    return (gates[:, :, None] * chosen).sum(1).to(x.dtype)
