"""Multi-scale deformable attention.

Letters: b batch, q queries, s pixels of all levels, c channels, m heads, l levels, p points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allsight.layers.precision import in_float32
from allsight.ops import ms_deform_attn
from allsight.ops.ms_deform_attn import Shapes, as_shapes


@runtime_checkable
class Sampling(Protocol):
    """The linear layers of every module that samples: offsets, weights, and values in and out."""

    sampling_offsets: nn.Linear
    attention_weights: nn.Linear
    value_proj: nn.Linear
    output_proj: nn.Linear


def init_sampling(module: Sampling, heads: int, levels: int, points: int, *, first_px: int = 1) -> None:
    """Start with each head looking in a direction of its own, all weights equal.

    Args:
        module: Whose layers are set.
        heads: Attention heads.
        levels: Feature maps.
        points: Sampling points per head and level; the n-th is n - 1 pixels farther than the first.
        first_px: How far off the first is; 0: at the very place.
    """
    angles = torch.arange(heads, dtype=torch.float32, device="cpu") * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(first_px, first_px + points, device="cpu")[:, None]
    offsets = (directions[:, None, None] * steps).expand(-1, levels, -1, -1)  # [m, l, p, 2]
    with torch.no_grad():
        module.sampling_offsets.bias.copy_(offsets.flatten())
    nn.init.zeros_(module.sampling_offsets.weight)
    nn.init.zeros_(module.attention_weights.weight)
    nn.init.zeros_(module.attention_weights.bias)
    for linear in (module.value_proj, module.output_proj):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)


def predict_offsets(linear: nn.Linear, query: Float[Tensor, "*shape c"]) -> Float[Tensor, "*shape n"]:
    """Offsets in pixels, in float32 at least."""
    offsets = in_float32(F.linear, query, linear.weight, linear.bias)
    return offsets.to(torch.promote_types(offsets.dtype, torch.float32))


def sizes_of_levels(shapes: Shapes, like: Tensor) -> Float[Tensor, "l 1 2"]:
    """Width and height of each level in pixels."""
    # Filled on the device: a tensor made from numbers would be copied there at every call.
    sizes = [like.new_full((), size) for height, width in shapes for size in (width, height)]
    return torch.stack(sizes).unflatten(0, (-1, 1, 2))


class MSDeformAttn(nn.Module):
    """Attention of queries to a few points per head on feature maps of several sizes.

    Every query predicts from itself where to look around its reference point (offsets) and how to mix what it
    finds there (weights, softmax over the points of all levels). Under autocast, places stay float32.

    Args:
        channels: Width of queries, values and output.
        levels: Feature maps.
        heads: Attention heads; divides `channels`.
        points: Sampling points per head and level.
        first_px: How far off the place each head's first point starts, see `init_sampling`.

    Raises:
        ValueError: Arguments that do not fit; the message names argument, expected and got.

    Source: fundamentalvision/Deformable-DETR:models/ops/modules/ms_deform_attn.py; same parameter names.
    """

    def __init__(
        self, channels: int = 256, *, levels: int = 4, heads: int = 8, points: int = 4, first_px: int = 1
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"MSDeformAttn: heads: expected a divisor of channels={channels}, got {heads}")
        for name, number in (("levels", levels), ("points", points)):
            if number < 1:
                raise ValueError(f"MSDeformAttn: {name}: expected an integer >= 1, got {number}")
        self.channels, self.levels, self.heads, self.points = channels, levels, heads, points
        self.first_px = first_px
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with each head looking in a direction of its own, all weights equal."""
        init_sampling(self, self.heads, self.levels, self.points, first_px=self.first_px)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        reference_points: Float[Tensor, "b q l xy"],
        value: Float[Tensor, "b s c"],
        spatial_shapes: Sequence[tuple[int, int]] | Int[Tensor, "l 2"],
        padding_mask: Bool[Tensor, "b s"] | None = None,
    ) -> Float[Tensor, "b q c"]:
        """Let the queries look at the values.

        Args:
            query: What asks; position embeddings are the caller's to add.
            reference_points: Per level (x, y) in 0..1 over the padded map, then offsets count in pixels of
                the level; or a box (center x, center y, width, height), then they count in parts of it.
            value: Features of all levels one after the other, each row by row.
            spatial_shapes: (height, width) of every level; a tensor is read once, which waits for its device.
            padding_mask: True where `value` is padding, which then counts as zero.

        Raises:
            ValueError: A shape does not fit; the message names argument, expected and got.
        """
        shapes = as_shapes(spatial_shapes)
        features = self.value_proj(value)
        if padding_mask is not None:
            features = features.masked_fill(padding_mask[..., None], 0.0)
        places, weights = self.looks(query, reference_points, shapes)
        mixed = ms_deform_attn(
            features.unflatten(-1, (self.heads, self.channels // self.heads)),
            shapes,
            places,
            weights,
            softmax=True,
        )
        return self.output_proj(mixed)

    def looks(
        self, query: Float[Tensor, "b q c"], reference_points: Float[Tensor, "b q l xy"], shapes: Shapes
    ) -> tuple[Float[Tensor, "b q m l p 2"], Float[Tensor, "b q m l p"]]:
        """Where the queries look, (x, y) in 0..1, and the weights there before their softmax."""
        weights = self.attention_weights(query).unflatten(-1, (self.heads, self.levels, self.points))
        return self._locations(query, reference_points, shapes), weights

    def _locations(
        self, query: Float[Tensor, "b q c"], reference_points: Float[Tensor, "b q l xy"], shapes: Shapes
    ) -> Float[Tensor, "b q m l p 2"]:
        """Where all points read, (x, y) in 0..1 and in float32 at least."""
        if reference_points.shape[2] != self.levels or reference_points.shape[3] not in (2, 4):
            raise ValueError(
                f"MSDeformAttn: reference_points: expected [b, q, {self.levels}, 2 or 4], "
                f"got {tuple(reference_points.shape)}"
            )
        offsets = predict_offsets(self.sampling_offsets, query)
        offsets = offsets.unflatten(-1, (self.heads, self.levels, self.points, 2))
        reference = reference_points[:, :, None, :, None]
        if reference_points.shape[3] == 2:
            return reference + offsets / sizes_of_levels(shapes, offsets)
        return reference[..., :2] + offsets / self.points * reference[..., 2:] * 0.5

    def extra_repr(self) -> str:
        return f"{self.channels}, levels={self.levels}, heads={self.heads}, points={self.points}"
