"""Normalisation of channels-last maps [b, h, w, c].

Maps stay channels last throughout the InternImage family: linear layers and layer norms then work on
contiguous rows, and a convolution sees the same memory as a `channels_last` tensor without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NormName = Literal["layer", "batch", "sync_batch"]
LAYER_NORM_EPS = 1e-6


_statistics_frozen = False


@contextmanager
def without_statistics() -> Iterator[None]:
    """Let batch norms of this block (all threads) leave their running statistics alone.

    For a forward pass that is run a second time to recompute activations.
    """
    global _statistics_frozen
    before, _statistics_frozen = _statistics_frozen, True
    try:
        yield
    finally:
        _statistics_frozen = before


class BatchNormLast(nn.BatchNorm2d):
    """Batch norm over [b, h, w, c] with the parameters and buffers of `nn.BatchNorm2d`.

    Statistics are those of the micro-batch on this rank, so results depend on how a batch is split.
    """

    def forward(self, input: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = input.permute(0, 3, 1, 2)
        if self.training and _statistics_frozen:
            mean, var = self.running_mean, self.running_var
            x = F.batch_norm(x, mean, var, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps)
        else:
            x = super().forward(x)
        return x.permute(0, 2, 3, 1)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over [b, c, h, w] that neither learns nor gathers statistics, in training as in evaluation.

    For backbones whose published statistics are kept. Parameters and buffers are those of `nn.BatchNorm2d`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        return super().train(False)


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNormLast(BatchNormLast):
    """`BatchNormLast` whose statistics are those of the micro-batches of all ranks, on any device.

    Splitting a batch over ranks then changes nothing; splitting it by accumulation still does. All ranks must
    call it equally often, which the layout `mixed_lanes` does not promise. `torch.nn.SyncBatchNorm` does the
    same on GPUs only. Without several processes, in evaluation and in 16-bit types see `BatchNormLast`;
    statistics are taken in float32 at least.
    """

    def forward(self, input: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        here = x.new_full((1,), x[..., 0].numel())
        sums = _SumOverRanks.apply(torch.cat([x.sum((0, 1, 2)), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # The squares of distances from the common mean: sums of squares would cancel.
        centered = x - mean
        variance = _SumOverRanks.apply(centered.square().sum((0, 1, 2))) / count
        if not _statistics_frozen:
            self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        result = centered * (variance + self.eps).rsqrt()
        if self.weight is not None:
            result = result * self.weight + self.bias
        return result.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def make_norm(name: NormName, channels: int) -> nn.Module:
    """Return a norm over the last dimension of [b, h, w, c].

    Args:
        name: "layer" (per pixel, eps 1e-6), "batch" (eps 1e-5, running statistics) or "sync_batch" (the same
            with the statistics of all ranks together).

    Raises:
        ValueError: Unknown name.
    """
    if name == "layer":
        return nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
    if name == "batch":
        return BatchNormLast(channels)
    if name == "sync_batch":
        return SyncBatchNormLast(channels)
    raise ValueError(f"norm: expected 'layer', 'batch' or 'sync_batch', got {name!r}")
