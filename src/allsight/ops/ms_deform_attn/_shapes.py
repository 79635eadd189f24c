"""The sizes of a multi-scale deformable attention call, checked once for all implementations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from allsight.ops._numbers import is_integer
from allsight.ops._tensors import check_tensors

Shapes = tuple[tuple[int, int], ...]


def as_shapes(spatial_shapes: Sequence[Sequence[int]] | Tensor) -> Shapes:
    """Return the (height, width) pairs of all levels as plain integers, or symbolic ones during an export.

    Raises:
        TypeError: Something else than integers.
        ValueError: Not a list of pairs of positive integers.
    """
    given = spatial_shapes
    if isinstance(spatial_shapes, Tensor):
        text = (
            f"ms_deform_attn: spatial_shapes: expected an integer tensor [l, 2], got "
            f"{spatial_shapes.dtype} {tuple(spatial_shapes.shape)}"
        )
        if spatial_shapes.is_floating_point() or spatial_shapes.dtype == torch.bool:
            raise TypeError(text)
        if spatial_shapes.ndim != 2:
            raise ValueError(text)
        spatial_shapes = spatial_shapes.tolist()
    text = "ms_deform_attn: spatial_shapes: expected a (height, width) pair of integers >= 1 per level, got"
    try:
        pairs = tuple(tuple(pair) for pair in spatial_shapes)
    except TypeError:
        raise TypeError(f"{text} {given!r}") from None
    # A plain loop: generators would take longer than the kernel on a small map.
    valid = len(pairs) > 0
    for pair in pairs:
        for size in pair:
            if not is_integer(size):
                raise TypeError(f"{text} {given!r}")
        valid = valid and len(pair) == 2 and bool(pair[0] >= 1) and bool(pair[1] >= 1)
    if not valid:
        raise ValueError(f"{text} {given!r}")
    return cast("Shapes", pairs)


def check(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Check the tensors of a call against each other and against the sizes of the levels.

    Raises:
        TypeError: One is no tensor of floating-point numbers.
        ValueError: A shape or device does not fit; the message names argument, expected and got.
    """
    check_tensors("ms_deform_attn", value=value, sampling_locations=locations, attention_weights=weights)
    if value.ndim != 4:
        raise ValueError(f"ms_deform_attn: value: expected [b, s, m, d], got shape {tuple(value.shape)}")
    batch, pixels, heads, _ = value.shape
    total = 0
    for height, width in shapes:
        total += height * width
    if pixels != total:
        raise ValueError(
            f"ms_deform_attn: value: expected {total} pixels (the sum of h*w over spatial_shapes {shapes}) "
            f"in dimension 1, got {pixels}"
        )
    if locations.ndim != 6:
        raise ValueError(
            f"ms_deform_attn: sampling_locations: expected [b, q, m, l, p, 2], "
            f"got shape {tuple(locations.shape)}"
        )
    _, queries, _, _, points, _ = locations.shape
    device, is_cpu = value.get_device(), value.is_cpu
    for name, tensor, last, meaning in (
        ("sampling_locations", locations, (points, 2), "[b, q, m, l, p, 2]"),
        ("attention_weights", weights, (points,), "[b, q, m, l, p]"),
    ):
        expected = (batch, queries, heads, len(shapes), *last)
        if tensor.shape != expected:
            raise ValueError(
                f"ms_deform_attn: {name}: expected shape {expected} {meaning}, got {tuple(tensor.shape)}"
            )
        # Asking for the devices themselves costs more than the rest of these checks.
        if tensor.get_device() != device or tensor.is_cpu != is_cpu:
            raise ValueError(
                f"ms_deform_attn: {name}: expected on {value.device} like value, got {tensor.device}"
            )
