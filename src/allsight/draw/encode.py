"""Pictures as the bytes of a file."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image


def encode_png(image: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], *, quality: int = 88) -> bytes:
    """The picture as a JPEG file of `quality` 1 to 100, with colours at full resolution (thin coloured
    lines).
    """
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="444")
