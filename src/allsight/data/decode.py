"""Bytes of a picture file to pixels. The result is uint8 RGB whatever the file; the unreadable is refused.

simplejpeg reads plain JPEG, for speed, and Pillow all else. Files cut short and files whose stream of pixels
is damaged are errors, never pictures with a grey half.

Letters in shapes: h w the picture.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image as PillowImage
from torch import Tensor

from allsight.types import DataError, Image

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused as decompression bombs; Pillow warns from the same number on."""

LeastSize = Callable[[int, int], tuple[int, int] | None]
"""(height, width) of a picture -> the size that it must have at least, or None: its own."""

WHITE = (255, 255, 255)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
"""Endings of the files that readers take for pictures, lower case."""

# Named, because Pillow would otherwise also try formats that start other programs (EPS) or have no use here.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# All that Pillow's decoders are known to raise on damaged files, and its warnings where they are made errors.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    PillowImage.DecompressionBombError,
    Warning,
)


def decode_picture(
    data: bytes,
    id: str,
    *,
    min_hw_px: tuple[int, int] | LeastSize | None = None,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = WHITE,
) -> Image:
    """Read a picture file.

    EXIF orientation is applied. Grey and 1-bit pictures are repeated over the channels; 16-bit values are
    scaled to 8 bit; palettes are looked up; transparency is composed on `background`; CMYK becomes RGB
    without colour management (profiles are ignored throughout), inverted only where the file says so; of an
    animation the first frame is taken.

    Args:
        data: The whole file.
        id: Sample id, for errors.
        min_hw_px: If given, a plain JPEG of at least twice this size is decoded at half its size or less,
            never below this size; a function is asked with the height and width of the picture. Anything
            measured in pixels of the file (boxes) must be scaled along: `original_hw_px` holds the size in
            the file, orientation applied.
        max_pixels: Pictures of more pixels are refused before they are decoded.
        background: RGB behind transparent pixels.

    Returns:
        The picture, its storage [h, w, 3] in memory order (torch's channels last), writable.

    Raises:
        DataError: Empty, cut short, damaged, no picture, too large, or of a kind without a stated range
            (32-bit or floating-point pixels).
    """
    if not data:
        raise _refused(id, "empty file (0 bytes); expected a picture")
    header = _JpegHeader.read(data) if data[:3] == b"\xff\xd8\xff" else None
    if header is not None:
        _check_size(header.height, header.width, max_pixels, id)
        if header.is_plain:
            turned = header.orientation >= 5
            size = (header.width, header.height) if turned else (header.height, header.width)
            least = min_hw_px(*size) if callable(min_hw_px) else min_hw_px
            pixels = _decode_plain_jpeg(data, header, least, id)
            if pixels is not None:
                return Image(_to_tensor(_upright(pixels, header.orientation)), original_hw_px=size)
    with _open(data, id) as picture:
        _check_size(picture.height, picture.width, max_pixels, id)
        inverted = header is not None and picture.mode == "CMYK" and not header.is_adobe
        pixels = _pillow_pixels(picture, id, background, inverted_cmyk=inverted)
        orientation = 1 if picture.format == "TIFF" else _exif_orientation(picture.info.get("exif", b""))
    pixels = _upright(pixels, orientation)
    return Image(_to_tensor(pixels), original_hw_px=(pixels.shape[0], pixels.shape[1]))


def decode_label_map(data: bytes, id: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "h w"]:
    """Read a picture file whose values are classes: grey of up to 8 bits, or the indices of a palette.

    Raises:
        DataError: As `decode_picture`, or a picture of colours, or a value above 255.
    """
    if not data:
        raise _refused(id, "empty label map file (0 bytes)")
    with _open(data, id) as picture:
        _check_size(picture.height, picture.width, max_pixels, id)
        if picture.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
            raise _refused(
                id,
                f"label map has mode {picture.mode} (colours); expected a class a pixel: grey or palette",
            )
        values = _array(picture, id)
    if values.dtype != np.uint8:
        largest = int(values.max(initial=0))
        if largest > 255:
            raise _refused(id, f"label map holds the value {largest}; expected 0 to 255")
        values = values.astype(np.uint8)
    if picture.format == "PNG" and data[24] in (2, 4) and data[25] == 0:
        # Pillow spreads grey of 2 and 4 bits over 0..255, right for brightness and wrong for classes.
        values = values // (85 if data[24] == 2 else 17)
    return torch.from_numpy(np.ascontiguousarray(values))


def read_picture(source: Any, *, id: str = "", max_pixels: int = MAX_PIXELS) -> Image:
    """A picture in any of the forms a user may hold it in.

    Args:
        source: A path; the bytes of a file; a Pillow image; a uint8 array [h, w, 3], [h, w, 4] (transparency
            is composed on white) or [h, w]; a tensor [3, h, w]. Floating-point arrays [h, w, 3] and tensors
            are taken as already normalised for the model.
        id: For errors; the path where there is one.

    Raises:
        DataError: No such file; not readable (see `decode_picture`); another shape or type; NaN or infinite
            pixels.
    """
    if isinstance(source, (str, Path)):
        return _read_path(Path(source), max_pixels)
    id = id or "picture"
    if isinstance(source, bytes):
        return decode_picture(source, id, max_pixels=max_pixels)
    if isinstance(source, PillowImage.Image):
        _check_size(source.height, source.width, max_pixels, id)
        pixels = _upright(_pillow_pixels(source, id, WHITE), _exif_orientation(source.info.get("exif", b"")))
        return _image(_to_tensor(pixels))
    if isinstance(source, np.ndarray):
        return _of_array(source, id)
    if isinstance(source, Tensor):
        return _of_tensor(source, id)
    raise _refused(
        id,
        f"cannot read a picture from {type(source).__name__}; expected a path, bytes, a Pillow image, "
        "an array [h, w, 3] or a tensor [3, h, w]",
    )


def _read_path(path: Path, max_pixels: int) -> Image:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _refused(str(path), f"no such file (looked in {Path.cwd()})") from None
    except IsADirectoryError:
        raise _refused(str(path), f"is a folder; expected a picture, such as {path / '*.jpg'}") from None
    except OSError as error:
        raise _refused(str(path), f"cannot be read: {error.strerror or error}") from error
    return decode_picture(data, str(path), max_pixels=max_pixels)


def _of_array(array: np.ndarray, id: str) -> Image:
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        hint = "; channels come last in arrays (a tensor has them first)" if array.shape[:1] == (3,) else ""
        raise _refused(
            id, f"array has shape {_times(array.shape)}; expected [h, w, 3], [h, w, 4] or [h, w]{hint}"
        )
    if array.dtype == np.uint8:
        if array.shape[2] == 4:
            array = _pillow_pixels(PillowImage.fromarray(array), id, WHITE)
        return _image(_to_tensor(array.copy()))
    if not np.issubdtype(array.dtype, np.floating) or array.shape[2] == 4:
        raise _refused(id, f"array of {array.dtype} with {array.shape[2]} channels; expected uint8 in 0..255")
    return _of_tensor(torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1), id)


def _of_tensor(tensor: Tensor, id: str) -> Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        hint = "; channels come first in tensors" if tensor.shape[-1:] == (3,) else ""
        raise _refused(id, f"tensor has shape {_times(tensor.shape)}; expected [3, h, w]{hint}")
    if tensor.dtype is not torch.uint8:
        if not tensor.is_floating_point():
            raise _refused(id, f"tensor of {tensor.dtype}; expected uint8 in 0..255, or normalised floats")
        require_finite(tensor, id)
    return _image(tensor.detach().cpu())


def require_finite(pixels: Tensor, id: str) -> None:
    """Refuse floating-point pixels that are NaN or infinite.

    Raises:
        DataError: There are some; says how many.
    """
    bad = int((~torch.isfinite(pixels)).sum())
    if bad:
        raise _refused(
            id, f"{bad} of {pixels.numel()} pixel values are NaN or infinite; expected finite values"
        )


def _image(pixels: Tensor) -> Image:
    return Image(pixels, original_hw_px=(int(pixels.shape[-2]), int(pixels.shape[-1])))


class _JpegHeader(NamedTuple):
    """What a JPEG says of itself before its pixels begin."""

    height: int
    width: int
    is_plain: bool
    """8 bits, one or three components: what simplejpeg reads."""
    is_adobe: bool
    orientation: int

    @classmethod
    def read(cls, data: bytes) -> _JpegHeader | None:
        """Walk the segments up to the frame header; None if there is none."""
        at, end = 2, len(data)
        is_adobe, orientation = False, 1
        while at + 4 <= end:
            if data[at] != 0xFF:
                return None
            marker = data[at + 1]
            if marker == 0xFF:
                at += 1
                continue
            size = data[at + 2] << 8 | data[at + 3]
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                if at + 10 > end:
                    return None
                bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
                return cls(height, width, bits == 8 and components in (1, 3), is_adobe, orientation)
            if marker == 0xDA:
                return None
            if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _exif_orientation(data[at + 4 : at + 2 + size])
            elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe":
                is_adobe = True
            at += 2 + size
        return None


def _decode_plain_jpeg(
    data: bytes, header: _JpegHeader, min_hw_px: tuple[int, int] | None, id: str
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Pixels, or None if this JPEG needs Pillow after all (rare subsamplings)."""
    height, width = min_hw_px or (0, 0)
    if header.orientation >= 5:
        height, width = width, height
    reduce = min_hw_px is not None and header.height >= 2 * height and header.width >= 2 * width
    try:
        if reduce:
            return simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=2)
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        reason = str(error)
        if reason.startswith("Premature end"):
            raise _refused(id, f"JPEG is cut short after {len(data)} bytes") from None
        if reason.startswith("Corrupt JPEG"):
            raise _refused(id, f"damaged JPEG ({reason})") from None
        return None


def _open(data: bytes, id: str) -> PillowImage.Image:
    try:
        return PillowImage.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    except PillowImage.UnidentifiedImageError:
        raise _refused(
            id,
            f"not a picture; begins with {data[:12]!r}; expected {', '.join(_PILLOW_FORMATS)}",
        ) from None
    except _PILLOW_ERRORS as error:
        raise _refused(id, _one_line(error)) from error


def _pillow_pixels(
    picture: PillowImage.Image, id: str, background: tuple[int, int, int], *, inverted_cmyk: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    mode = picture.mode
    if mode.startswith("I;16"):
        wide = _array(picture, id).astype(np.uint32)
        # 65535 / 255 = 257; adding half of it rounds to nearest.
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if mode in ("I", "F"):
        raise _refused(
            id, f"pixels of 32 bits (mode {mode}) have no stated range; save the picture with 8 or 16 bits"
        )
    try:
        picture.load()
        if "A" in mode or mode == "La" or "transparency" in picture.info:
            layered = picture.convert("RGBA")
            flat = PillowImage.new("RGBA", layered.size, (*background, 255))
            flat.alpha_composite(layered)
            return np.array(flat.convert("RGB"))
        if inverted_cmyk:
            # Pillow takes every CMYK JPEG for Adobe's, which are inverted.
            picture = picture.point([255 - value for value in range(256)] * 4)
        return np.array(picture if mode == "RGB" else picture.convert("RGB"))
    except _PILLOW_ERRORS as error:
        raise _refused(id, _one_line(error)) from error


def _array(picture: PillowImage.Image, id: str) -> np.ndarray:
    try:
        picture.load()
        return np.array(picture)
    except _PILLOW_ERRORS as error:
        raise _refused(id, _one_line(error)) from error


def _exif_orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or the block is damaged."""
    start = 6 if exif[:6] == b"Exif\0\0" else 0
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[start : start + 4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", exif, start + 4)
        (entries,) = struct.unpack_from(order + "H", exif, start + first)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, start + first + 2 + 12 * entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _upright(pixels: UInt8[np.ndarray, "_ _ 3"], orientation: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Turn and mirror stored pixels the way EXIF asks for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _to_tensor(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(pixels).transpose(2, 0, 1))


def _check_size(height: int, width: int, max_pixels: int, id: str) -> None:
    if height * width > max_pixels:
        raise _refused(
            id, f"{width} x {height} = {width * height} pixels; expected at most {max_pixels} (max_pixels)"
        )
    if height * width == 0:
        raise _refused(id, f"{width} x {height} pixels; expected at least one")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be decoded: {text}"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape) or "()"


def _refused(id: str, reason: str) -> DataError:
    return DataError(f"{id}: {reason}", id)
