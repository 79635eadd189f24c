"""Brightness, contrast, hue and saturation of pictures of bytes, changed in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from allsight.ops import _native

_LEVEL, _UNIT = 1 << 7, 1 << 14
"""Values are whole numbers of 1/128 of a level; factors and turns of 2^-14."""
_MOST = 255 * _LEVEL


@dataclass(frozen=True)
class Recolouring:
    """What is changed, in this order. Values are cut to 0..255 after each change, and rounded at the end.

    Args:
        brightness: Added to all values, in levels.
        contrast: Factor on all values, 0 to 2.
        hue_deg: Turn around the circle of hues (HSV), -180 to 180.
        saturation: Factor on the saturation (HSV), 0 to 2; at most full saturation comes of it.
        contrast_first: Whether contrast comes before hue and saturation, and not after them.
        order: Which changed channel becomes red, which green, which blue.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    hue_deg: float = 0.0
    saturation: float = 1.0
    contrast_first: bool = True
    order: tuple[int, int, int] = (0, 1, 2)

    def __post_init__(self) -> None:
        if (
            not 0 <= self.contrast <= 2
            or not -180 <= self.hue_deg <= 180
            or not 0 <= self.saturation <= 2
            or sorted(self.order) != [0, 1, 2]
        ):
            raise ValueError(
                "Recolouring: expected factors from 0 to 2, hue within 180 degrees and "
                f"an order of the three channels, got {self}"
            )

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """Shift, first factor, turn, saturation and last factor as whole numbers."""
        contrast = round(self.contrast * _UNIT)
        first, last = (contrast, _UNIT) if self.contrast_first else (_UNIT, contrast)
        turn = round(self.hue_deg / 60 * _UNIT)
        shift = round(min(max(self.brightness, -255), 255) * _LEVEL)
        return shift, first, turn, round(self.saturation * _UNIT), last


def recolour(pixels: UInt8[Tensor, "3 h w"], change: Recolouring) -> UInt8[Tensor, "3 h w"]:
    """Change the colours of an RGB picture.

    The compiled kernel (csrc/recolour.h), and PyTorch where that was not built, count in whole numbers and
    give the same bytes on every machine.

    Args:
        pixels: Fast where its memory order is [h, w, 3] (torch's channels last).
        change: What is changed.

    Returns:
        A picture of its own memory, in memory order [h, w, 3].
    """
    rows_first = pixels.permute(1, 2, 0).contiguous()
    if _native.unusable() is not None:
        return _by_torch(rows_first, change).permute(2, 0, 1)
    out = torch.empty_like(rows_first)
    count = rows_first.shape[0] * rows_first.shape[1]
    call = _native.RecolourCall(count, *change.numbers, *change.order, rows_first.data_ptr(), out.data_ptr())
    _native.run("recolour", call, torch.uint8)
    return out.permute(2, 0, 1)


def _by_torch(pixels: UInt8[Tensor, "h w 3"], change: Recolouring) -> UInt8[Tensor, "h w 3"]:
    shift, first, turn, saturation, last = change.numbers
    values = _times((pixels.int() * _LEVEL + shift).clamp(0, _MOST), first).clamp(0, _MOST)
    if turn or saturation != _UNIT:
        values = _turned(values, turn, saturation)
    values = (_times(values, last).clamp(0, _MOST) + _LEVEL // 2) // _LEVEL
    return values[..., list(change.order)].to(torch.uint8)


def _times(values: Int32[Tensor, ...], factor: int | Int32[Tensor, ...]) -> Int32[Tensor, ...]:
    return (values * factor + _UNIT // 2) // _UNIT


def _turned(values: Int32[Tensor, "h w 3"], turn: int, saturation: int) -> Int32[Tensor, "h w 3"]:
    """Hue and saturation of HSV in sixths of the circle: csrc/recolour.h has the formula."""
    red, green, blue = values.unbind(-1)
    most = values.amax(-1)
    chroma = most - values.amin(-1)
    over = torch.where(most == red, green - blue, torch.where(most == green, blue - red, red - green)).float()
    start = torch.where(most == red, 0, torch.where(most == green, 2 * _UNIT, 4 * _UNIT)).int()
    hue = start + (over / chroma.clamp_min(1).float() * _UNIT).int() + turn
    hue = hue.remainder(6 * _UNIT)
    strength = torch.minimum(_times(chroma, saturation), most)
    channels = []
    for place in (5, 3, 1):
        k = (hue + place * _UNIT).remainder(6 * _UNIT)
        share = torch.minimum(k, 4 * _UNIT - k).clamp(0, _UNIT)
        channels.append(most - _times(strength, share))
    return torch.stack(channels, -1)
