"""What the deformable layers DCNv3 and DCNv4 have in common.

Letters: b batch, h w input map, ho wo output map, g groups, p points, c channels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.inference import InferenceOnly
from allsight.layers.precision import in_float32
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


class Operands(NamedTuple):
    """What a deformable layer gives its operator."""

    value: Float[Tensor, "b h w c"]
    offset: Float[Tensor, "b ho wo gpx2"]
    mask: Float[Tensor, "b ho wo gp"]


class DeformableLayer(nn.Module, ABC):
    """Channels mixed by a linear layer, sampled where the input says, and mixed by another one.

    A subclass says what offsets and weights come from (`_context`, `_offset_and_mask`), how the weights are
    normalised (`_normalised`), and what is done with the samples (`sample`, `forward`).

    Args:
        operator: The layer's name in messages.
        channels: Width of input and output.
        geometry: The sampling pattern.
        dw_kernel_size: Odd size of the depth-wise convolution that looks at the neighbourhood.
        centered: Whether output pixels must be centered on input pixels, as blending with the un-sampled
            features needs it.

    Raises:
        ValueError: Arguments that do not fit; the message names argument, expected and got.
    """

    def __init__(
        self, operator: str, channels: int, geometry: Geometry, *, dw_kernel_size: int, centered: bool
    ) -> None:
        super().__init__()
        if channels % geometry.groups:
            raise ValueError(
                f"{operator}: groups: expected a divisor of channels={channels}, got {geometry.groups}"
            )
        if dw_kernel_size % 2 == 0:
            raise ValueError(f"{operator}: dw_kernel_size: expected an odd size, got {dw_kernel_size}")
        self.channels, self.groups, self.geometry = channels, geometry.groups, geometry
        self.stride, padding, reach = geometry.stride[0], geometry.padding[0], geometry.reach[0]
        if centered and padding != reach:
            raise ValueError(
                f"{operator}: center_feature_scale: needs output pixels centered on input pixels, that is "
                f"padding {reach} for kernel_size {geometry.kernel_size[0]} and dilation "
                f"{geometry.dilation[0]}, got {padding}"
            )
        self._dw_padding = dw_kernel_size // 2 - reach + padding

    center_feature_scale: nn.Linear | None
    """Predicts for each group how far its gate is open."""

    @property
    @abstractmethod
    def _value_projection(self) -> nn.Linear:
        """The linear layer before the operator."""

    @abstractmethod
    def _context(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        """What offsets, weights and gates are predicted from."""

    @abstractmethod
    def _offset_and_mask(
        self, context: Float[Tensor, "b ho wo c"]
    ) -> tuple[Float[Tensor, "b ho wo gpx2"], Float[Tensor, "b ho wo gp"]]:
        """Predict offsets and weights, not normalised."""

    def _normalised(self, weights: Float[Tensor, "b ho wo g p"]) -> Float[Tensor, "b ho wo g p"]:
        """Return the weights as they count."""
        return weights

    @abstractmethod
    def sample(self, operands: Operands) -> Float[Tensor, "b ho wo _"]:
        """Call the operator."""

    def _start(self, *, steering: Iterable[nn.Linear], mixing: Iterable[nn.Linear]) -> None:
        """Give what predicts offsets, weights and gates zeros, and what mixes channels random weights."""
        for linear in (*steering, self.center_feature_scale):
            if linear is not None:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        for linear in mixing:
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def _gates(self) -> dict[str, nn.Module]:
        """What predicts the gates, by its name."""
        scale = self.center_feature_scale
        return {} if scale is None else {"center_feature_scale": scale}

    def operands(self, x: Float[Tensor, "b h w c"]) -> Operands:
        """Return what `forward` gives the operator for this input."""
        return self._operands(x, self._context(x))

    def _operands(self, x: Float[Tensor, "b h w c"], context: Float[Tensor, "b ho wo c"]) -> Operands:
        return Operands(self._value_projection(x), *self._offset_and_mask(context))

    def sampling(self, x: Float[Tensor, "b h w c"]) -> Sampling:
        """What `forward` samples of this input."""
        offset, mask = self._offset_and_mask(self._context(x))
        weights = self._normalised(mask.unflatten(-1, (self.groups, self.geometry.points)))
        return Sampling(sampling_points(offset, self.geometry), weights, self.geometry)

    def _depth_wise(self, conv: nn.Conv2d, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c"]:
        """Convolve around the centers of the sampling windows; a negative padding takes pixels away first."""
        height, width = self.geometry.output_size(x.shape[1], x.shape[2])
        x = x.permute(0, 3, 1, 2)
        if self._dw_padding < 0:
            x = F.pad(x, [self._dw_padding] * 4)
        # An even sampling kernel gives a map smaller by one than the odd depth-wise one.
        return conv(x).permute(0, 2, 3, 1)[:, :height, :width]

    def _blend(
        self,
        mixed: Float[Tensor, "b ho wo c"],
        value: Float[Tensor, "b h w c"],
        gate: Float[Tensor, "b ho wo g"],
    ) -> Float[Tensor, "b ho wo c"]:
        """Take the un-sampled features as far as the gate of their group is open."""
        centers = value[:, :: self.stride, :: self.stride]
        gate = gate.repeat_interleave(mixed.shape[-1] // gate.shape[-1], dim=-1)
        return torch.lerp(mixed, centers.to(mixed.dtype), gate.to(mixed.dtype))

    def extra_repr(self) -> str:
        kernel = self.geometry.kernel_size[0]
        return f"{self.channels}, groups={self.groups}, kernel_size={kernel}, stride={self.stride}"


class OneProduct(InferenceOnly):
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

        def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return merged(x) if weight is merged.weight else F.linear(x, weight, bias)

        both = in_float32(product, context, merged.weight, merged.bias)
        return both[..., : self._places], both[..., self._places :]

    def inference_form(self) -> nn.Module:
        """Return a copy of this layer."""
        return copy.deepcopy(self)
