"""Text in Pillow's own font, at any size."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from allsight.draw.palette import Rgb, readable_on

_SMALLEST_PX = 10
"""Below this the letters of the font run together."""


def text_height_px(height: int, width: int) -> int:
    """Height of letters that suits a picture of this size."""
    return max(_SMALLEST_PX, round(0.03 * min(height, width)))


@lru_cache(maxsize=32)
def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's bundled font."""
    return ImageFont.load_default(size_px)


def plain(text: str) -> str:
    """The text in the letters that the font has: accents are dropped, other signs become question marks."""
    if text.isascii():
        return text
    split = unicodedata.normalize("NFKD", text)
    return "".join(c if c.isascii() else "?" for c in split if not unicodedata.combining(c))


def measure(text: str, size_px: int) -> tuple[int, int]:
    """Width and height in pixels of one line, with a margin around it."""
    margin = margin_px(size_px)
    return round(font(size_px).getlength(text)) + 2 * margin, line_height_px(size_px) + margin


def margin_px(size_px: int) -> int:
    return max(1, round(0.2 * size_px))


def line_height_px(size_px: int) -> int:
    return round(1.25 * size_px)


def fit(text: str, size_px: int, width_px: int) -> str:
    """The text, or as much of its beginning as fits with two dots after it; empty if not even these fit."""
    text = plain(text)
    if measure(text, size_px)[0] <= width_px:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = text[:length].rstrip() + ".."
        if measure(short, size_px)[0] <= width_px:
            return short
    return ""


def wrap(text: str, size_px: int, width_px: int) -> list[str]:
    """Lines no wider than `width_px`, broken between words; a longer word is shortened."""
    lines: list[str] = []
    for paragraph in plain(text).split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and measure(longer, size_px)[0] > width_px:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [fit(line, size_px, width_px) for line in lines]


def put_label(
    pen: ImageDraw.ImageDraw, text: str, left: int, top: int, size_px: int, background: Rgb
) -> None:
    """One line on a filled bar, whose upper left corner is given."""
    width, height = measure(text, size_px)
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=background)
    pen.text((left + margin_px(size_px), top), text, fill=readable_on(background), font=font(size_px))


def draw_text(
    image: UInt8[np.ndarray, "h w 3"],
    text: str | Sequence[str],
    *,
    left: int = 0,
    top: int = 0,
    size_px: int | None = None,
    background: Rgb = (0, 0, 0),
) -> UInt8[np.ndarray, "h w 3"]:
    """Write lines on filled bars.

    Args:
        image: The picture.
        text: A line, or lines one below the other; what does not fit into the width is shortened.
        left, top: Upper left corner of the first bar in pixels.
        size_px: Height of the letters; by default as suits the picture.
        background: Colour of the bars; the letters are black or white.
    """
    height, width = image.shape[:2]
    size_px = size_px or text_height_px(height, width)
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for line in [text] if isinstance(text, str) else text:
        short = fit(line, size_px, width - left)
        if short:
            put_label(pen, short, left, top, size_px, background)
        top += measure(line, size_px)[1]
    return np.array(canvas)
