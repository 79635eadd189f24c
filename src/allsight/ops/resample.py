"""Pictures of bytes brought to another size, with antialiasing: every picture passes through here."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from allsight.ops import _native
from allsight.ops._numbers import is_integer

Interpolation = Literal["bilinear", "bicubic"]


def resample_window(
    pixels: UInt8[Tensor, "3 h w"],
    window: tuple[int, int, int, int],
    hw_px: tuple[int, int],
    *,
    interpolation: Interpolation = "bilinear",
    mirrored: bool = False,
) -> UInt8[Tensor, "3 ho wo"]:
    """Resize a window of a picture, without copying it first.

    Bilinearly, with the compiled kernels (csrc/resample.h), the result is the same on every machine, whatever
    its instruction set. Else PyTorch resizes; of its bilinear result some values differ by one, since it
    rounds in another order. The choice depends on the installation alone, not on `use_backend`: data workers
    are processes of their own and must make the same pictures.

    Args:
        pixels: RGB. Fast where its memory order is [h, w, 3] (torch's channels last).
        window: Top, left, height, width; inside the picture.
        hw_px: Height and width of the result.
        interpolation: The filter, stretched where the picture shrinks; as Pillow's.
        mirrored: Exchange left and right of the result; costs nothing with the compiled kernels.

    Returns:
        A picture of its own memory, in memory order [ho, wo, 3].

    Raises:
        TypeError: A side of the window or of the result is no integer.
        ValueError: The window reaches over the edges, or a size is below one pixel.
    """
    if not all(is_integer(side) for side in (*window, *hw_px)):
        raise TypeError(f"resample_window: window, hw_px: expected integers, got {window!r} and {hw_px!r}")
    top, left, height, width = window
    if min(top, left) < 0 or top + height > pixels.shape[1] or left + width > pixels.shape[2]:
        raise ValueError(f"window {window} reaches over a picture of {tuple(pixels.shape[1:])}")
    if min(height, width, *hw_px) < 1:
        raise ValueError(f"expected at least one pixel, got a window {window} for {hw_px}")
    of_channel, step, of_pixel = pixels.stride()
    if (of_channel, of_pixel) != (1, 3):
        pixels = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        step = pixels.stride(1)
    if interpolation == "bicubic" or _native.unusable() is not None:
        cut = pixels[:, top : top + height, left : left + width].permute(1, 2, 0)
        resized = _by_torch(cut, hw_px, interpolation)
        return resized.flip(-1) if mirrored else resized
    out_height, out_width = hw_px
    out = torch.empty_strided((3, out_height, out_width), (1, 3 * out_width, 3), dtype=torch.uint8)
    start = pixels.data_ptr() + top * step + 3 * left
    call = _native.ResampleCall(height, width, out_height, out_width, step, mirrored, start, out.data_ptr())
    _native.run("resample", call, torch.uint8)
    return out


def _by_torch(
    window: UInt8[Tensor, "h w 3"], hw_px: tuple[int, int], interpolation: Interpolation
) -> UInt8[Tensor, "3 ho wo"]:
    # Giving the batch axis its true stride is what lets torch take its channels-last path for uint8.
    batch = window.contiguous()[None].permute(0, 3, 1, 2)
    return functional.interpolate(batch, hw_px, mode=interpolation, antialias=True)[0]
