"""Deformable convolution layers.

Letters: b batch, h w input map, ho wo output map, g groups, c channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.activation import ActivationName, make_activation
from allsight.layers.norm import NormName, make_norm
from allsight.layers.precision import in_float32
from allsight.ops import dcnv3


class DCNv3(nn.Module):
    """The operator of InternImage: a deformable convolution whose offsets and weights depend on the input.

    A depth-wise convolution looks at the neighbourhood of each output pixel and predicts there where to
    sample (offsets) and how to mix the samples (weights, softmax over the points); channels are mixed by the
    linear layers before and after. With `stride` > 1 the depth-wise convolution takes the same stride and is
    padded so that its windows are centered on those of the sampling grid: one prediction per output pixel.

    Args:
        channels: Width of input and output.
        groups: Channel groups with offsets of their own; divides `channels`.
        kernel_size: Sampling points per axis.
        stride: Input pixels between output pixels.
        padding: Pixels of zeros around the map.
        dilation: Input pixels between neighbouring sampling points.
        offset_scale: Factor on the sampling grid and on the offsets.
        dw_kernel_size: Odd size of the depth-wise convolution; default `kernel_size`.
        act: Activation after the depth-wise convolution.
        norm: Norm after the depth-wise convolution.
        center_feature_scale: Blend the result with the un-sampled features by a learned gate per group.
        remove_center: Leave out the middle sampling point; `kernel_size` must be odd.

    Raises:
        ValueError: Arguments that do not fit; the message names argument, expected and got.

    Source: OpenGVLab/InternImage:classification/ops_dcnv3/modules/dcnv3.py. There, strides other than 1 fail.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        offset_scale: float | int = 1.0,
        dw_kernel_size: int | None = None,
        act: ActivationName = "gelu",
        norm: NormName = "layer",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"DCNv3: groups: expected a divisor of channels={channels}, got {groups}")
        if remove_center and (kernel_size % 2 == 0 or kernel_size == 1):
            raise ValueError(f"DCNv3: remove_center: needs an odd kernel_size >= 3, got {kernel_size}")
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        if dw_kernel_size % 2 == 0:
            raise ValueError(f"DCNv3: dw_kernel_size: expected an odd size, got {dw_kernel_size}")
        reach = dilation * (kernel_size - 1) // 2
        if center_feature_scale and padding != reach:
            raise ValueError(
                f"DCNv3: center_feature_scale: needs output pixels centered on input pixels, that is "
                f"padding {reach} for kernel_size {kernel_size} and dilation {dilation}, got {padding}"
            )
        self.channels, self.groups = channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.offset_scale, self.remove_center = offset_scale, remove_center
        self._dw_padding = dw_kernel_size // 2 - reach + padding

        values = groups * (kernel_size**2 - int(remove_center))
        self.dw_conv = nn.Conv2d(
            channels, channels, dw_kernel_size, stride, max(self._dw_padding, 0), groups=channels
        )
        self.dw_norm = make_norm(norm, channels)
        self.dw_act = make_activation(act)
        self.offset = nn.Linear(channels, 2 * values)
        self.mask = nn.Linear(channels, values)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.center_feature_scale = nn.Linear(channels, groups) if center_feature_scale else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as a plain average over the regular grid: zero offsets, equal weights, gates half open."""
        for linear in (self.offset, self.mask, self.center_feature_scale):
            if linear is not None:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        for linear in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        value = self.input_proj(x)
        context = self._context(x)
        mixed = dcnv3(
            value,
            self._offset(context),
            self.mask(context),
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            softmax=True,
        )
        if self.center_feature_scale is not None:
            gate = self.center_feature_scale(context).sigmoid()  # [b, ho, wo, g]
            centers = value[:, :: self.stride, :: self.stride]
            gate = gate.repeat_interleave(self.channels // self.groups, dim=-1)
            mixed = torch.lerp(mixed, centers.to(mixed.dtype), gate.to(mixed.dtype))
        return self.output_proj(mixed)

    def _context(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        """What offsets, weights and gates are predicted from."""
        height, width = (self._output_size(size) for size in x.shape[1:3])
        x = x.permute(0, 3, 1, 2)
        if self._dw_padding < 0:
            x = F.pad(x, [self._dw_padding] * 4)
        # An even sampling kernel gives a map smaller by one than the odd depth-wise one.
        context = self.dw_conv(x).permute(0, 2, 3, 1)[:, :height, :width]
        return self.dw_act(self.dw_norm(context))

    def _output_size(self, size: int) -> int:
        return (size + 2 * self.padding - self.dilation * (self.kernel_size - 1) - 1) // self.stride + 1

    def _offset(self, context: Float[Tensor, "b ho wo c"]) -> Float[Tensor, "b ho wo gpx2"]:
        return in_float32(F.linear, context, self.offset.weight, self.offset.bias)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, stride={self.stride}"
