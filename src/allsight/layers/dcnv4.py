"""The deformable convolution of FlashInternImage.

Letters: b batch, h w input map, ho wo output map, g groups, p points, c channels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.deformable import DeformableLayer, OneProduct, Operands
from allsight.layers.precision import in_float32
from allsight.ops import dcnv4
from allsight.ops.dcnv3 import Geometry


class DCNv4(DeformableLayer):
    """The operator of FlashInternImage: DCNv3 with weights that nothing bounds, and a shorter way to them.

    One linear layer predicts offsets and weights from the input itself, or from a plain depth-wise
    convolution of it. It starts at zero, so the layer starts as the bias of `output_proj` (plus half of the
    un-sampled features with `center_feature_scale`). With `stride` > 1 predictions are made where the windows
    of the output pixels are centered.

    Parameters lie as in the official code: `offset_mask` holds per group 2 * points rows for offsets, then
    `points` rows for weights, and unused rows at the end up to a multiple of 8.

    Args:
        channels: Width of input and output.
        groups: Channel groups with offsets of their own; divides `channels`.
        kernel_size: Sampling points per axis.
        stride: Input pixels between output pixels.
        padding: Pixels of zeros around the map.
        dilation: Input pixels between neighbouring sampling points.
        offset_scale: Factor on the sampling grid and on the offsets.
        dw_kernel_size: Odd size of the depth-wise convolution; default None, no convolution.
        center_feature_scale: Blend the result with the un-sampled features by a gate per group that is
            learned from the result (in DCNv3: from the input).
        remove_center: Leave out the middle sampling point; `kernel_size` must be odd.
        output_bias: Whether `output_proj` has a bias.

    Raises:
        ValueError: Arguments that do not fit; the message names argument, expected and got.

    Source: OpenGVLab/DCNv4:DCNv4_op/DCNv4/modules/dcnv4.py; stride 1 there.
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
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
    ) -> None:
        geometry = Geometry.of(
            groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, operator="DCNv4"
        )
        super().__init__(
            "DCNv4",
            channels,
            geometry,
            dw_kernel_size=1 if dw_kernel_size is None else dw_kernel_size,
            centered=center_feature_scale,
        )
        values = groups * geometry.points
        self.offset_mask_dw = (
            nn.Conv2d(channels, channels, dw_kernel_size, stride, max(self._dw_padding, 0), groups=channels)
            if dw_kernel_size
            else None
        )
        self.offset_mask = nn.Linear(channels, -(-3 * values // 8) * 8)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels, bias=output_bias)
        self.center_feature_scale = nn.Linear(channels, groups) if center_feature_scale else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with regular grids and zero weights, gates half open."""
        self._start(steering=(self.offset_mask,), mixing=(self.value_proj, self.output_proj))

    def sampling_parts(self) -> dict[str, nn.Module]:
        """Return the layers that steer the sampling, which may want learning rates of their own."""
        predicting = nn.ModuleList([m for m in (self.offset_mask_dw, self.offset_mask) if m is not None])
        return {"offset_and_mask": predicting, **self._gates()}

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        operands = self.operands(x)
        mixed = self.sample(operands)
        if self.center_feature_scale is not None:
            mixed = self._blend(mixed, operands.value, self.center_feature_scale(mixed).sigmoid())
        return self.output_proj(mixed)

    def sample(self, operands: Operands) -> Float[Tensor, "b ho wo c"]:
        """Call the operator."""
        return dcnv4(*operands, **self.geometry.arguments())

    @property
    def _value_projection(self) -> nn.Linear:
        return self.value_proj

    def _context(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        if self.offset_mask_dw is not None:
            return self._depth_wise(self.offset_mask_dw, x)
        height, width = self.geometry.output_size(x.shape[1], x.shape[2])
        x = F.pad(x, [0, 0] + [self._dw_padding] * 4) if self._dw_padding else x
        return x[:, :: self.stride, :: self.stride][:, :height, :width]

    def _offset_and_mask(
        self, context: Float[Tensor, "b ho wo c"]
    ) -> tuple[Float[Tensor, "b ho wo gpx2"], Float[Tensor, "b ho wo gp"]]:
        """Predict offsets and weights of all groups side by side, in float32 under autocast.

        The rows of the projection are put in order, which costs nothing beside reordering its results.
        """
        values = self.groups * self.geometry.points
        both = in_float32(F.linear, context, *self._in_order())
        offset, mask = both.split([2 * values, values], dim=-1)
        return offset, mask

    def _in_order(self) -> tuple[Float[Tensor, "places c"], Float[Tensor, " places"]]:
        """Weight and bias of the projection: the rows of all offsets, then of all weights; none unused."""
        points = self.geometry.points

        def in_order(rows: Tensor) -> Tensor:
            used = rows[: 3 * self.groups * points].unflatten(0, (self.groups, -1))
            offset, mask = used.split([2 * points, points], 1)
            return torch.cat([offset.flatten(0, 1), mask.flatten(0, 1)])

        return in_order(self.offset_mask.weight), in_order(self.offset_mask.bias)

    def inference_form(self) -> nn.Module:
        """Return the layer for evaluation only that `prepare_for_inference` puts in the place of this one."""
        return DCNv4ForInference(self)


class DCNv4ForInference(OneProduct, DCNv4):
    """A DCNv4 whose projection has its rows in the operator's order once and for all.

    Args:
        layer: What is copied.
    """

    def __init__(self, layer: DCNv4) -> None:
        nn.Module.__init__(self)
        vars(self).update(copy.deepcopy(vars(layer)), training=False)
        self._predict_with(*self._in_order())
        del self.offset_mask
