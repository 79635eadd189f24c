"""The numbers of a DCNv3 or DCNv4 call besides its tensors, checked once for all implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allsight.ops._numbers import check_integer, check_number, check_truth, is_integer
from allsight.ops._tensors import check_tensors

Pair = tuple[int, int]

_known: dict[tuple[Any, ...], Geometry] = {}
_MOST_KNOWN = 1024
_NUMBERS = (float, int)


# Compared by identity: `of` gives one object for the same arguments, and looking things up by it is quick.
@dataclass(frozen=True, eq=False)
class Geometry:
    """Sampling pattern of a call; pairs are (height, width), errors begin with the name of the operator."""

    groups: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    offset_scale: float
    remove_center: bool
    operator: str = "dcnv3"

    @classmethod
    def of(
        cls,
        groups: int,
        kernel_size: int | Pair,
        stride: int | Pair,
        padding: int | Pair,
        dilation: int | Pair,
        offset_scale: float | int,
        remove_center: bool,
        operator: str = "dcnv3",
    ) -> Geometry:
        """Check the arguments and complete single integers to pairs.

        Raises:
            TypeError: An argument is of the wrong kind; the message names it.
            ValueError: An argument is out of range; the message names it.
        """
        given = (groups, kernel_size, stride, padding, dilation, offset_scale, remove_center, operator)
        if torch.compiler.is_compiling():
            return cls._checked(*given)
        # Looked up by value, for which 4.0 would do as well as 4.
        is_plain = (
            _are_plain(given[:5]) and offset_scale.__class__ in _NUMBERS and remove_center.__class__ is bool
        )
        if is_plain and (known := _known.get(given)) is not None:
            return known
        geometry = cls._checked(*given)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        pairs = (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation)
        geometry = _known.setdefault(
            (groups, *pairs, geometry.offset_scale, geometry.remove_center, operator), geometry
        )
        if is_plain:
            _known[given] = geometry
        return geometry

    @classmethod
    def _checked(
        cls,
        groups: Any,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        offset_scale: Any,
        remove_center: Any,
        operator: str,
    ) -> Geometry:
        check_integer(operator, "groups", groups, least=1)
        check_number(operator, "offset_scale", offset_scale)
        check_truth(operator, "remove_center", remove_center)
        kernel = _pair(operator, "kernel_size", kernel_size, 1)
        if remove_center and (kernel[0] != kernel[1] or kernel[0] % 2 == 0):
            raise ValueError(f"{operator}: remove_center: needs a square odd kernel_size, got {kernel}")
        if remove_center and kernel == (1, 1):
            raise ValueError(f"{operator}: remove_center: kernel_size 1 has no other point than its center")
        return cls(
            groups=groups,
            kernel_size=kernel,
            stride=_pair(operator, "stride", stride, 1),
            padding=_pair(operator, "padding", padding, 0),
            dilation=_pair(operator, "dilation", dilation, 1),
            offset_scale=float(offset_scale),
            remove_center=remove_center,
            operator=operator,
        )

    @classmethod
    def of_pattern(cls, pattern: Sequence[int], offset_scale: float) -> Geometry:
        """The geometry with this `pattern`, the reverse of it."""
        groups, *pairs, remove_center = pattern
        kernel, stride, padding, dilation = zip(pairs[::2], pairs[1::2], strict=True)
        return cls.of(groups, kernel, stride, padding, dilation, offset_scale, bool(remove_center))

    @property
    def pattern(self) -> tuple[int, ...]:
        """All but `offset_scale` as integers, the form in which PyTorch carries them."""
        pairs = (*self.kernel_size, *self.stride, *self.padding, *self.dilation)
        return (self.groups, *pairs, int(self.remove_center))

    def arguments(self) -> dict[str, Any]:
        """The arguments of a call with this pattern, as `allsight.ops.dcnv3` and `dcnv4` name them."""
        return {
            "groups": self.groups,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "offset_scale": self.offset_scale,
            "remove_center": self.remove_center,
        }

    @property
    def points(self) -> int:
        """Number of sampling points per output pixel and group."""
        return self.kernel_size[0] * self.kernel_size[1] - int(self.remove_center)

    @property
    def extent(self) -> Pair:
        """Input pixels from the first kernel point to the last, both included."""
        (dilation_h, dilation_w), (rows, columns) = self.dilation, self.kernel_size
        return dilation_h * (rows - 1) + 1, dilation_w * (columns - 1) + 1

    @property
    def reach(self) -> Pair:
        """Distance from the first to the middle kernel point in input pixels (h of the paper's sheet)."""
        height, width = (d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return height, width

    def output_size(self, height: int, width: int) -> Pair:
        """Size of the output map for an input map of the given size (may be < 1 when nothing fits)."""
        (pad_h, pad_w), (stride_h, stride_w), (tall, wide) = self.padding, self.stride, self.extent
        return (height + 2 * pad_h - tall) // stride_h + 1, (width + 2 * pad_w - wide) // stride_w + 1

    def check(self, value: Tensor, offset: Tensor, mask: Tensor) -> None:
        """Check the tensors against the pattern.

        Raises:
            TypeError: One is no tensor of floating-point numbers.
            ValueError: A shape or device does not fit; the message names argument, expected and got.
        """
        check_tensors(self.operator, value=value, offset=offset, mask=mask)
        if value.ndim != 4:
            raise ValueError(f"{self.operator}: value: expected [b, h, w, c], got shape {tuple(value.shape)}")
        batch, height, width, channels = value.shape
        if channels % self.groups:
            raise ValueError(
                f"{self.operator}: value: expected channels divisible by groups={self.groups}, got {channels}"
            )
        if height < 1 or width < 1:
            raise ValueError(
                f"{self.operator}: value: expected a map of one pixel at least, got {tuple(value.shape)}"
            )
        rows, columns = self.output_size(height, width)
        if rows < 1 or columns < 1:
            raise ValueError(
                f"{self.operator}: value: a map of {height}x{width} with padding {self.padding} is smaller "
                f"than kernel_size {self.kernel_size} with dilation {self.dilation}"
            )
        values = self.groups * self.points
        device, is_cpu = value.get_device(), value.is_cpu
        for name, tensor, last, meaning in (
            ("offset", offset, 2 * values, "groups*points*2"),
            ("mask", mask, values, "groups*points"),
        ):
            expected = (batch, rows, columns, last)
            if tensor.shape != expected:
                raise ValueError(
                    f"{self.operator}: {name}: expected shape {expected} [b, ho, wo, {meaning}], "
                    f"got {tuple(tensor.shape)}"
                )
            # Asking for the devices themselves costs more than the rest of these checks.
            if tensor.get_device() != device or tensor.is_cpu != is_cpu:
                raise ValueError(
                    f"{self.operator}: {name}: expected on {value.device} like value, got {tensor.device}"
                )


def _are_plain(given: tuple[Any, ...]) -> bool:
    """Whether all are integers or tuples of them. On the way of every call, so written for speed."""
    for part in given:
        if part.__class__ is int:
            continue
        if part.__class__ is not tuple:
            return False
        for number in part:
            if number.__class__ is not int:
                return False
    return True


def _pair(operator: str, name: str, given: Any, least: int) -> Pair:
    pair = tuple(given) if isinstance(given, list | tuple) else (given, given)
    text = f"{operator}: {name}: expected an integer >= {least} or a (height, width) pair, got {given!r}"
    if not all(is_integer(number) for number in pair):
        raise TypeError(text)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(text)
    return pair[0], pair[1]
