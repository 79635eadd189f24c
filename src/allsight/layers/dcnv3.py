"""The deformable convolution of InternImage.

Letters: b batch, h w input map, ho wo output map, g groups, p points, c channels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.activation import ActivationName, activation_name, make_activation
from allsight.layers.dcn_points import dcnv3_points
from allsight.layers.deformable import DeformableLayer, OneProduct, Operands
from allsight.layers.inference import fuses, take_in_batch_norm
from allsight.layers.norm import NormName, make_norm
from allsight.layers.precision import in_float32
from allsight.ops import dcnv3, depthwise_norm_act
from allsight.ops.dcnv3 import Geometry


class DCNv3(DeformableLayer):
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
        softmax: Normalise the weights over the points of a group. Without, nothing bounds them, and the layer
            starts as the bias of `output_proj`, like a DCNv4. For ablations.
        shared_weights: One output projection for all sampling points. Without, each point has its own, as in
            a plain convolution and in DCNv2: `output_proj` is then `kernel_size ** 2` times as large. For
            ablations.

    Raises:
        ValueError: Arguments that do not fit; the message names argument, expected and got.

    Source: OpenGVLab/InternImage:classification/ops_dcnv3/modules/dcnv3.py. There, strides other than 1 fail.
    The two ablations are those of the paper, arXiv:2211.05778, section 4.4.
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
        softmax: bool = True,
        shared_weights: bool = True,
    ) -> None:
        geometry = Geometry.of(
            groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, operator="DCNv3"
        )
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        super().__init__(
            "DCNv3", channels, geometry, dw_kernel_size=dw_kernel_size, centered=center_feature_scale
        )
        reach = geometry.reach[0]
        if not shared_weights and center_feature_scale:
            raise ValueError("DCNv3: shared_weights: False does not go with center_feature_scale")
        if not shared_weights and (kernel_size % 2 == 0 or padding < reach):
            raise ValueError(
                f"DCNv3: shared_weights: False needs an odd kernel_size and padding of at least {reach}, got "
                f"{kernel_size} and {padding}"
            )
        self.softmax, self.shared_weights = softmax, shared_weights

        values = groups * geometry.points
        self.dw_conv = nn.Conv2d(
            channels, channels, dw_kernel_size, stride, max(self._dw_padding, 0), groups=channels
        )
        self.dw_norm = make_norm(norm, channels)
        self.dw_act = make_activation(act)
        self.offset = nn.Linear(channels, 2 * values)
        self.mask = nn.Linear(channels, values)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels * (1 if shared_weights else geometry.points), channels)
        self.center_feature_scale = nn.Linear(channels, groups) if center_feature_scale else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as a plain average over the regular grid: zero offsets, equal weights, gates half open."""
        self._start(steering=(self.offset, self.mask), mixing=(self.input_proj, self.output_proj))

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        context = self._context(x)
        operands = self._operands(x, context)
        mixed = self.sample(operands)
        if self.center_feature_scale is not None:
            mixed = self._blend(mixed, operands.value, self.center_feature_scale(context).sigmoid())
        return self.output_proj(mixed)

    def sample(self, operands: Operands) -> Float[Tensor, "b ho wo _"]:
        """Call the operator; with weights of their own the points stay apart up to the output projection."""
        operator = dcnv3 if self.shared_weights else dcnv3_points
        return operator(*operands, **self.geometry.arguments(), softmax=self.softmax)

    @property
    def _value_projection(self) -> nn.Linear:
        return self.input_proj

    def _context(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        conv, norm, act = self.dw_conv, self.dw_norm, activation_name(self.dw_act)
        if (
            act is not None
            and type(norm) is nn.LayerNorm
            and self.stride == 1
            and self._dw_padding == conv.kernel_size[0] // 2
            and self.geometry.output_size(x.shape[1], x.shape[2]) == tuple(x.shape[1:3])
            and fuses(x, conv, norm, self.dw_act)
        ):
            vectors = conv.bias, norm.weight, norm.bias
            return depthwise_norm_act(x, conv.weight, *vectors, eps=norm.eps, act=act)
        return self.dw_act(norm(self._depth_wise(conv, x)))

    def _offset_and_mask(
        self, context: Float[Tensor, "b ho wo c"]
    ) -> tuple[Float[Tensor, "b ho wo gpx2"], Float[Tensor, "b ho wo gp"]]:
        """Predict offsets, in float32 under autocast, and logits of the weights."""
        return in_float32(F.linear, context, self.offset.weight, self.offset.bias), self.mask(context)

    def sampling_parts(self) -> dict[str, nn.Module]:
        """Return the layers that steer the sampling, which may want learning rates of their own."""
        return {"offset": self.offset, "mask": self.mask, **self._gates()}

    def _normalised(self, weights: Float[Tensor, "b ho wo g p"]) -> Float[Tensor, "b ho wo g p"]:
        return weights.softmax(-1) if self.softmax else weights

    def inference_form(self) -> nn.Module:
        """Return the layer for evaluation only that `prepare_for_inference` puts in the place of this one."""
        return DCNv3ForInference(self)


class DCNv3ForInference(OneProduct, DCNv3):
    """A DCNv3 that predicts offsets and weights of the samples by one matrix product.

    The depth-wise weight is kept with its taps apart and its channels together, as the operator wants it; a
    batch norm after it is part of it.

    Args:
        layer: What is copied.
    """

    def __init__(self, layer: DCNv3) -> None:
        nn.Module.__init__(self)
        vars(self).update(copy.deepcopy(vars(layer)), training=False)
        offset, mask = self.offset, self.mask
        del self.offset, self.mask
        self._predict_with(torch.cat([offset.weight, mask.weight]), torch.cat([offset.bias, mask.bias]))
        if isinstance(self.dw_norm, nn.BatchNorm2d):
            take_in_batch_norm(self.dw_conv, self.dw_norm)
            self.dw_norm = nn.Identity()
        taps = self.dw_conv.weight.detach().permute(2, 3, 1, 0).contiguous()
        self.dw_conv.weight = nn.Parameter(taps.permute(3, 2, 0, 1))
