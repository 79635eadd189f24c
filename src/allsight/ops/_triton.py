"""What the Triton back ends of all operators share on the host side; does not import triton.

A program of a kernel serves a tile of `rows` sampling positions (output pixels or queries) of one image and
one group or head, times all channels of that group. Tile sizes follow from the call by fixed rules and are
never searched for at run time: another tile is another order of summation, so that a search would make the
last bits of the gradients depend on what else the machine was doing.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

_IS_INSTALLED = find_spec("triton") is not None
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# A kernel: forward, backward with floating-point adds, backward with fixed-point adds.
Task = Literal["forward", "backward", "deterministic"]

# Positions per program: 64 is an 8 x 8 tile of pixels, whose samples overlap about twelvefold in L1.
_MOST_ROWS = 64
_MOST_WARPS = 8
# Elements of one [rows, channels] or [rows, points] tile; keeps a handful of them in registers.
_MOST_ELEMENTS = 2048


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device (to be set before triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "true", "True", "on")


def unusable() -> str | None:
    """Say why no Triton kernel can run on this machine, or return None."""
    if not _IS_INSTALLED:
        return "triton is not installed"
    if is_interpreted() or torch.cuda.is_available():
        return None
    return "no CUDA or ROCm device, and TRITON_INTERPRET=1 is not set"


def about() -> str:
    """What to say of the backend where it is usable."""
    try:
        return f"Triton {version('triton')}" + (", interpreted" if is_interpreted() else "")
    except PackageNotFoundError:
        return "Triton"


def refuses(*tensors: Tensor) -> str | None:
    """Say why these tensors cannot be given to a Triton kernel, or return None."""
    for tensor in tensors:
        if tensor.dtype not in _TYPES:
            return f"no kernel for {tensor.dtype}"
        if not (tensor.is_cuda or is_interpreted()):
            return f"tensors are on {tensor.device}, not on a GPU, and TRITON_INTERPRET=1 is not set"
    return None


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def computing_type(*tensors: Tensor) -> torch.dtype:
    """Return the type of coordinates, products and sums: float64 if any tensor has it, else float32."""
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def check_map_size(name: str, height: int, width: int) -> None:
    """Kernels count the pixels of one map in 32 bits (elements of tensors in 64).

    Raises:
        ValueError: More than 2^31 - 1 pixels.
    """
    if height * width >= 2**31:
        raise ValueError(f"{name}: expected maps of less than 2^31 pixels, got {height}x{width}")


@dataclass(frozen=True)
class Tile:
    """Size of a program: rows of channels (a power of two, at least the channels of a group) by warps."""

    rows: int
    channels: int
    points: int
    num_warps: int

    @classmethod
    def of(cls, task: Task, channels: int, points: int, value: Tensor) -> Tile:
        """Choose the tile of a kernel.

        Args:
            task: Which kernel.
            channels: Channels of a group or head.
            points: Points of a row over all levels.
            value: The maps.
        """
        # Channels per thread. Forward: one 16-byte load. Backward: one 16-byte vector of float32 adds
        # (red.global.add.v4.f32), and the same split for loads spares shared-memory transposes. Adds without
        # a vector form: neighbouring threads take neighbouring channels, so that each instruction of a warp
        # fills whole sectors.
        if task == "forward":
            lanes = 16 // value.element_size()
        else:
            lanes = 4 if task == "backward" and _adds_vectors(value.device) else 1
        width, depth = power_of_two(channels), power_of_two(points)
        rows = min(_MOST_ROWS, max(1, _MOST_ELEMENTS // max(width, depth)))
        if task != "forward":
            rows = min(rows, max(1, _MOST_WARPS * 32 * lanes // width))
        warps = min(_MOST_WARPS, max(1, rows * width // (32 * lanes)))
        return cls(rows, width, depth, warps)


def unrolled(points: int, most: int) -> int:
    """Return how many points a loop body holds: loads of several in flight, code and registers bounded."""
    return next(count for count in range(min(points, most), 0, -1) if points % count == 0)


def pixel_tile(pixels: int, rows: int, columns: int) -> tuple[int, int]:
    """Split `pixels` (a power of two) into (height, width) of the tile that wastes least of a map.

    Of tiles that waste the same the squarest wins: its samples share most of what lies in L1.
    """

    def cost(height: int) -> tuple[int, int]:
        width = pixels // height
        padded = -(-rows // height) * height * (-(-columns // width) * width)
        return padded, max(height, width)

    height = min((1 << bit for bit in range(pixels.bit_length())), key=cost)
    return height, pixels // height


def pixel_pitch(tensor: Tensor) -> int | None:
    """Return the distance of neighbouring pixels in elements, or None if they do not lie evenly in memory.

    Args:
        tensor: [b, h, w, n]; may be a view of some of the columns of a wider tensor.
    """
    batch, height, width, size = tensor.shape
    if batch * height * width <= 1:
        pitch = size
    else:
        pitch = tensor.stride(2) if width > 1 else tensor.stride(1) if height > 1 else tensor.stride(0)
    expected = (height * width * pitch, width * pitch, pitch, 1)
    for length, stride, even in zip(tensor.shape, tensor.stride(), expected, strict=True):
        if length > 1 and stride != even:
            return None
    return pitch if pitch >= size else None


@dataclass(frozen=True)
class MapGradient:
    """Where the gradient of `value` is summed up, over programs that run in any order.

    By default in floating point (float32 at least) with atomic adds. When
    `torch.are_deterministic_algorithms_enabled()`, in 64-bit fixed point: integer sums do not depend on their
    order, so results are equal bit for bit on every run, whatever the atomics do, at the full parallelism of
    the default. Programs that own a slice of the map instead would be few (images times groups; 4 for one
    image of InternImage-T's first stage), and need a scatter into shared memory, which Triton has not. The
    unit is a power of two chosen per image, so that an image's gradient does not depend on the rest of the
    batch, and just large enough that no sum can overflow: with 2^18 samples in one place it is 2^-42 of the
    largest possible addend, where float32 rounds each partial sum to 2^-24.

    Attributes:
        total: Sums, in the shape of `value`.
        factors: Per image [b, 2], powers of two: one that brings the output's gradient below 1, and
            fixed-point units in 1 after that; two, since their product may be out of range. Unused for
            floating point.
        is_fixed_point: Which of the two.
    """

    total: Tensor
    factors: Tensor
    is_fixed_point: bool
    _inverse: Tensor

    @classmethod
    def of(
        cls, value: Tensor, dtype: torch.dtype, grad: Tensor, weights: Tensor | None, addends: int
    ) -> MapGradient:
        """Prepare zeros.

        Args:
            value: The tensor whose gradient is wanted, [b, ...].
            dtype: Type that products are computed in.
            grad: Gradient of the output [b, ...].
            weights: What it is multiplied with [b, ...]; None if nowhere larger than 1.
            addends: How many products can meet in one element.
        """
        if not torch.are_deterministic_algorithms_enabled():
            none = value.new_empty(1, dtype=dtype)
            return cls(torch.zeros(value.shape, dtype=dtype, device=value.device), none, False, none)
        largest = _largest(grad)
        largest_weight = torch.ones_like(largest) if weights is None else _largest(weights)
        # 61 of the 63 bits: rounding of products, and of softmax weights to just above one, has room.
        bits = 61 - addends.bit_length()
        limit = 126 if dtype == torch.float32 else 1022
        exponents = torch.frexp(torch.stack([largest, largest_weight], 1)).exponent  # number < 2^exponent
        exponents = torch.stack([-exponents[:, 0], bits - exponents[:, 1]], 1).clamp(-limit, limit).double()
        # Infinite or NaN gradients have no fixed-point form: they make the gradient of the whole image NaN.
        inverse = torch.where((largest * largest_weight).isfinite(), torch.exp2(-exponents.sum(1)), torch.nan)
        total = torch.zeros(value.shape, dtype=torch.int64, device=value.device)
        return cls(total, torch.exp2(exponents).to(dtype), True, inverse)

    def result(self, dtype: torch.dtype) -> Tensor:
        """Return the sums, rounded once to the type asked for."""
        if not self.is_fixed_point:
            return self.total.to(dtype)
        result = torch.empty(self.total.shape, dtype=dtype, device=self.total.device)
        return torch.mul(self.total, self._inverse.view(-1, *[1] * (self.total.ndim - 1)), out=result)


@cache
def _adds_vectors(device: torch.device) -> bool:
    """Whether the device adds vectors of float32 atomically (NVIDIA's do since Hopper)."""
    if device.type != "cuda":
        return True  # interpreted or only compiled
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (9, 0)


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute number of each image, in float64 [b]."""
    dims = tuple(range(1, tensor.ndim))
    return torch.linalg.vector_norm(tensor, torch.inf, dim=dims).to(torch.float64)


def power_of_two(number: int) -> int:
    """The smallest one that is no less."""
    return 1 << (number - 1).bit_length()
