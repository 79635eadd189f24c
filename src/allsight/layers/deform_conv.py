"""Deformable convolution with a weight per kernel point, as in deformable ResNets.

Letters: b batch, h w input map, ho wo output map, c channels, k kernel points, g deformable groups.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.precision import in_float32
from allsight.ops import ms_deform_attn


class DeformConv2d(nn.Module):
    """Modulated deformable convolution (DCNv2) of maps [b, c, h, w].

    A convolution whose kernel points are moved by predicted offsets and weighed by predicted numbers in 0..1.
    Its start, with zero offsets, is half an ordinary convolution. Sampling goes through
    `allsight.ops.ms_deform_attn`: every kernel point of every output pixel is a query with one point, every
    deformable group a head; one matrix product per group mixes the samples. Results are channels last in
    memory.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Points per axis; this and the next three are integers or (height, width) pairs.
        stride: Input pixels between output pixels.
        padding: Pixels of zeros around the map.
        dilation: Input pixels between neighbouring kernel points.
        groups: Groups of channels that are mixed apart, as in `nn.Conv2d`.
        deform_groups: Groups of input channels with offsets and weights of their own.
        bias: Whether to add a bias.

    Raises:
        ValueError: Arguments that do not fit; the message names argument, expected and got.

    Source: Deformable ConvNets v2, arXiv:1811.11168; parameters, start and offset order (y, x) of
    open-mmlab/mmcv:mmcv/ops/modulated_deform_conv.py, ModulatedDeformConv2dPack.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for name, number, channels in (
            ("groups", groups, in_channels),
            ("groups", groups, out_channels),
            ("deform_groups", deform_groups, in_channels),
        ):
            if number < 1 or channels % number:
                raise ValueError(f"DeformConv2d: {name}: expected a divisor of {channels}, got {number}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair("kernel_size", kernel_size, 1), _pair("stride", stride, 1)
        self.padding, self.dilation = _pair("padding", padding, 0), _pair("dilation", dilation, 1)
        self.groups, self.deform_groups = groups, deform_groups

        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(
            in_channels,
            3 * deform_groups * math.prod(self.kernel_size),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with zero offsets, all kernel points at half weight."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        for zero in (self.bias, self.conv_offset.weight, self.conv_offset.bias):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, x: Float[Tensor, "b cin h w"]) -> Float[Tensor, "b cout ho wo"]:
        height, width = x.shape[2:]
        places, amounts, rows, columns = self._predict(x)
        value = x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (self.deform_groups, -1))
        samples = ms_deform_attn(value, ((height, width),), places, amounts)
        samples = samples.unflatten(1, (rows * columns, -1))  # [b, howo, k, c]
        weight = self.weight.flatten(2).transpose(1, 2)  # [cout, k, c / groups]
        parts = [
            F.linear(part.flatten(2), rows_of_group.flatten(1))
            for part, rows_of_group in zip(
                samples.chunk(self.groups, -1), weight.chunk(self.groups), strict=True
            )
        ]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.bias is not None:
            mixed = mixed + self.bias.to(mixed.dtype)
        return mixed.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)

    def _predict(
        self, x: Float[Tensor, "b cin h w"]
    ) -> tuple[Float[Tensor, "b howok g 1 1 2"], Float[Tensor, "b howok g 1 1"], int, int]:
        """Where all kernel points read, (x, y) in 0..1, how much they count, and the size of the output."""
        predicted = in_float32(self._conv_offset, x, self.conv_offset.weight, self.conv_offset.bias)
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        batch, _, rows, columns = predicted.shape
        groups, points = self.deform_groups, math.prod(self.kernel_size)
        offset, amount = predicted.split([2 * groups * points, groups * points], dim=1)

        # A point of a group has two channels, y before x.
        offset = offset.reshape(batch, groups, points, 2, rows, columns).permute(0, 4, 5, 2, 1, 3).flip(-1)
        sizes = torch.stack([offset.new_full((), size) for size in (x.shape[3], x.shape[2])])
        places = (offset + self._regular_grid(rows, columns, offset) + 0.5) / sizes
        amount = amount.sigmoid().reshape(batch, groups, points, rows, columns).permute(0, 3, 4, 2, 1)
        return places.flatten(1, 3)[:, :, :, None, None], amount.flatten(1, 3)[..., None, None], rows, columns

    def _conv_offset(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def _regular_grid(self, rows: int, columns: int, like: Tensor) -> Float[Tensor, "ho wo k 1 2"]:
        """Place all kernel points at zero offset: (x, y) in pixels whose centers are integers."""

        def axis(outputs: int, which: int) -> Tensor:
            first = torch.arange(outputs, dtype=like.dtype, device=like.device) * self.stride[which]
            steps = torch.arange(self.kernel_size[which], dtype=like.dtype, device=like.device)
            return (first - self.padding[which])[:, None] + steps * self.dilation[which]

        shape = (rows, columns, *self.kernel_size)
        y = axis(rows, 0)[:, None, :, None].expand(shape)
        x = axis(columns, 1)[None, :, None, :].expand(shape)
        return torch.stack([x, y], dim=-1).flatten(2, 3)[:, :, :, None]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, deform_groups={self.deform_groups}"
        )


def _pair(name: str, given: int | tuple[int, int], least: int) -> tuple[int, int]:
    height, width = (given, given) if isinstance(given, int) else given
    if height < least or width < least:
        raise ValueError(f"DeformConv2d: {name}: expected integers >= {least}, got {given}")
    return height, width
