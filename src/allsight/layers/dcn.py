"""Deformable convolution layers.

Letters: b batch, h w input map, ho wo output map, g groups, c channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.activation import ActivationName, activation_name, make_activation
from allsight.layers.dcn_points import dcnv3_points
from allsight.layers.inference import InferenceOnly, fuses, take_in_batch_norm
from allsight.layers.norm import NormName, make_norm
from allsight.layers.precision import in_float32
from allsight.ops import dcnv3, dcnv4, depthwise_norm_act
from allsight.ops.dcnv3 import Geometry, sampling_points


@dataclass(frozen=True)
class Sampling:
    """Where a deformable layer reads its input, and how much each sample counts.

    Args:
        points_xy: Places in pixels of the input map whose centers are integers.
        weights: Of the samples; those of DCNv3 are positive and add up to 1 over the points.
        geometry: The pattern that offsets move.
    """

    points_xy: Float[Tensor, "b ho wo g p 2"]
    weights: Float[Tensor, "b ho wo g p"]
    geometry: Geometry


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
        if not shared_weights and center_feature_scale:
            raise ValueError("DCNv3: shared_weights: False does not go with center_feature_scale")
        if not shared_weights and (kernel_size % 2 == 0 or padding < reach):
            raise ValueError(
                f"DCNv3: shared_weights: False needs an odd kernel_size and padding of at least {reach}, got "
                f"{kernel_size} and {padding}"
            )
        self.channels, self.groups = channels, groups
        self.softmax, self.shared_weights = softmax, shared_weights
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.offset_scale, self.remove_center = offset_scale, remove_center
        self._dw_padding = dw_kernel_size // 2 - reach + padding

        points = kernel_size**2 - int(remove_center)
        values = groups * points
        self.dw_conv = nn.Conv2d(
            channels, channels, dw_kernel_size, stride, max(self._dw_padding, 0), groups=channels
        )
        self.dw_norm = make_norm(norm, channels)
        self.dw_act = make_activation(act)
        self.offset = nn.Linear(channels, 2 * values)
        self.mask = nn.Linear(channels, values)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels * (1 if shared_weights else points), channels)
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
        offset, mask = self._offset_and_mask(context)
        # With weights of their own the points stay apart up to the output projection.
        sample = dcnv3 if self.shared_weights else dcnv3_points
        mixed = sample(
            value,
            offset,
            mask,
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            softmax=self.softmax,
        )
        if self.center_feature_scale is not None:
            gate = self.center_feature_scale(context).sigmoid()
            mixed = _blend(mixed, value[:, :: self.stride, :: self.stride], gate)
        return self.output_proj(mixed)

    def _context(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        """What offsets, weights and gates are predicted from."""
        height, width = (self._output_size(size) for size in x.shape[1:3])
        conv, norm, act = self.dw_conv, self.dw_norm, activation_name(self.dw_act)
        if (
            act is not None
            and type(norm) is nn.LayerNorm
            and self.stride == 1
            and self._dw_padding == conv.kernel_size[0] // 2
            and (height, width) == tuple(x.shape[1:3])
            and fuses(x, conv, norm, self.dw_act)
        ):
            vectors = conv.bias, norm.weight, norm.bias
            return depthwise_norm_act(x, conv.weight, *vectors, eps=norm.eps, act=act)
        context = _depth_wise(conv, x, self._dw_padding, height, width)
        return self.dw_act(norm(context))

    def _output_size(self, size: int) -> int:
        return (size + 2 * self.padding - self.dilation * (self.kernel_size - 1) - 1) // self.stride + 1

    def _offset_and_mask(
        self, context: Float[Tensor, "b ho wo c"]
    ) -> tuple[Float[Tensor, "b ho wo gpx2"], Float[Tensor, "b ho wo gp"]]:
        """Predict offsets, in float32 under autocast, and logits of the weights."""
        return in_float32(F.linear, context, self.offset.weight, self.offset.bias), self.mask(context)

    def sampling_parts(self) -> dict[str, nn.Module]:
        """Return the layers that steer the sampling, which may want learning rates of their own."""
        parts: dict[str, nn.Module] = {"offset": self.offset, "mask": self.mask}
        if self.center_feature_scale is not None:
            parts["center_feature_scale"] = self.center_feature_scale
        return parts

    def sampling(self, x: Float[Tensor, "b h w c"]) -> Sampling:
        """What `forward` samples of this input."""
        geometry = Geometry.of(
            self.groups,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.offset_scale,
            self.remove_center,
        )
        offset, mask = self._offset_and_mask(self._context(x))
        weights = mask.unflatten(-1, (self.groups, geometry.points))
        if self.softmax:
            weights = weights.softmax(-1)
        return Sampling(sampling_points(offset, geometry), weights, geometry)

    def inference_form(self) -> nn.Module:
        """Return the layer for evaluation only that `prepare_for_inference` puts in the place of this one."""
        return DCNv3ForInference(self)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, stride={self.stride}"


class _OneProduct(InferenceOnly):
    """What deformable layers prepared for inference share: offsets and weights come of one matrix product.

    Its result holds both side by side; the operator takes the two parts as they lie.
    """

    offset_and_mask: nn.Linear
    _places: int

    def _predict_with(self, weight: Float[Tensor, "places c"], bias: Float[Tensor, " places"]) -> None:
        """Take over the rows for offsets (2 of each 3), then those for weights."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        self.offset_and_mask, self._places = linear, 2 * weight.shape[0] // 3

    def _offset_and_mask(
        self, context: Float[Tensor, "b ho wo c"]
    ) -> tuple[Float[Tensor, "b ho wo gpx2"], Float[Tensor, "b ho wo gp"]]:
        merged = self.offset_and_mask
        both = in_float32(F.linear, context, merged.weight, merged.bias)
        return both[..., : self._places], both[..., self._places :]

    def inference_form(self) -> nn.Module:
        """Return a copy of this layer."""
        return copy.deepcopy(self)


class DCNv3ForInference(_OneProduct, DCNv3):
    """A DCNv3 that predicts offsets and weights of the samples by one matrix product.

    The depth-wise weight is kept with its taps apart and its channels together, as the operator wants it; a
    batch norm after it is part of it.

    Args:
        layer: What is copied.
    """

    def __init__(self, layer: DCNv3) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(layer).__dict__, training=False)
        offset, mask = self.offset, self.mask
        del self.offset, self.mask
        self._predict_with(torch.cat([offset.weight, mask.weight]), torch.cat([offset.bias, mask.bias]))
        if isinstance(self.dw_norm, nn.BatchNorm2d):
            take_in_batch_norm(self.dw_conv, self.dw_norm)
            self.dw_norm = nn.Identity()
        taps = self.dw_conv.weight.detach().permute(2, 3, 1, 0).contiguous()
        self.dw_conv.weight = nn.Parameter(taps.permute(3, 2, 0, 1))


class DCNv4(nn.Module):
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
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"DCNv4: groups: expected a divisor of channels={channels}, got {groups}")
        if dw_kernel_size is not None and dw_kernel_size % 2 == 0:
            raise ValueError(f"DCNv4: dw_kernel_size: expected an odd size, got {dw_kernel_size}")
        geometry = Geometry.of(
            groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, operator="DCNv4"
        )
        reach = geometry.reach[0]
        if center_feature_scale and padding != reach:
            raise ValueError(
                f"DCNv4: center_feature_scale: needs output pixels centered on input pixels, that is "
                f"padding {reach} for kernel_size {kernel_size} and dilation {dilation}, got {padding}"
            )
        self.channels, self.groups, self.geometry = channels, groups, geometry
        self.stride = stride
        self._dw_padding = (dw_kernel_size or 1) // 2 - reach + padding

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
        for linear in (self.offset_mask, self.center_feature_scale):
            if linear is not None:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def sampling_parts(self) -> dict[str, nn.Module]:
        """Return the layers that steer the sampling, which may want learning rates of their own."""
        predicting = nn.ModuleList([m for m in (self.offset_mask_dw, self.offset_mask) if m is not None])
        parts: dict[str, nn.Module] = {"offset_and_mask": predicting}
        if self.center_feature_scale is not None:
            parts["center_feature_scale"] = self.center_feature_scale
        return parts

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        value, geometry = self.value_proj(x), self.geometry
        offset, mask = self._offset_and_mask(self._context(x))
        mixed = dcnv4(
            value,
            offset,
            mask,
            groups=self.groups,
            kernel_size=geometry.kernel_size,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            offset_scale=geometry.offset_scale,
            remove_center=geometry.remove_center,
        )
        if self.center_feature_scale is not None:
            gate = self.center_feature_scale(mixed).sigmoid()
            mixed = _blend(mixed, value[:, :: self.stride, :: self.stride], gate)
        return self.output_proj(mixed)

    def _context(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        """What offsets and weights are predicted from."""
        height, width = self.geometry.output_size(x.shape[1], x.shape[2])
        if self.offset_mask_dw is not None:
            return _depth_wise(self.offset_mask_dw, x, self._dw_padding, height, width)
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

    def sampling(self, x: Float[Tensor, "b h w c"]) -> Sampling:
        """What `forward` samples of this input."""
        offset, mask = self._offset_and_mask(self._context(x))
        weights = mask.unflatten(-1, (self.groups, self.geometry.points))
        return Sampling(sampling_points(offset, self.geometry), weights, self.geometry)

    def inference_form(self) -> nn.Module:
        """Return the layer for evaluation only that `prepare_for_inference` puts in the place of this one."""
        return DCNv4ForInference(self)

    def extra_repr(self) -> str:
        kernel = self.geometry.kernel_size[0]
        return f"{self.channels}, groups={self.groups}, kernel_size={kernel}, stride={self.stride}"


class DCNv4ForInference(_OneProduct, DCNv4):
    """A DCNv4 whose projection has its rows in the operator's order once and for all.

    Args:
        layer: What is copied.
    """

    def __init__(self, layer: DCNv4) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(layer).__dict__, training=False)
        self._predict_with(*self._in_order())
        del self.offset_mask


def _depth_wise(
    conv: nn.Conv2d, x: Float[Tensor, "b h w c"], padding: int, height: int, width: int
) -> Float[Tensor, "b ho wo c"]:
    """Convolve around the centers of the sampling windows; a negative padding takes pixels away first."""
    x = x.permute(0, 3, 1, 2)
    if padding < 0:
        x = F.pad(x, [padding] * 4)
    # An even sampling kernel gives a map smaller by one than the odd depth-wise one.
    return conv(x).permute(0, 2, 3, 1)[:, :height, :width]


def _blend(
    mixed: Float[Tensor, "b ho wo c"], centers: Float[Tensor, "b ho wo c"], gate: Float[Tensor, "b ho wo g"]
) -> Float[Tensor, "b ho wo c"]:
    """Take the un-sampled features as far as the gate of their group is open."""
    gate = gate.repeat_interleave(mixed.shape[-1] // gate.shape[-1], dim=-1)
    return torch.lerp(mixed, centers.to(mixed.dtype), gate.to(mixed.dtype))
