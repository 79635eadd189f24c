"""Pictures side by side, with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from allsight.draw.palette import Rgb
from allsight.draw.text import font, line_height_px, margin_px, measure, plain, text_height_px, wrap

_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def enlarge(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Every pixel as a square of `factor` x `factor`, so that small pictures are seen as they are.

    Raises:
        ValueError: `factor` is below 1.
    """
    if factor < 1:
        raise ValueError(f"enlarge: expected a factor of at least 1, got {factor}")
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def captioned(
    image: UInt8[np.ndarray, "h w 3"],
    caption: str,
    *,
    size_px: int | None = None,
    lines: int | None = None,
    background: Rgb = _PAPER,
    ink: Rgb = _INK,
) -> UInt8[np.ndarray, "h2 w 3"]:
    """The picture with its caption below it.

    Args:
        image: The picture; it is not covered.
        caption: Broken into lines between words.
        size_px: Height of the letters; by default as suits the picture.
        lines: Room for so many lines whatever the caption; more are cut off. By default as many as it takes.
        background, ink: Colours of the caption.
    """
    height, width = image.shape[:2]
    size_px = size_px or text_height_px(height, width)
    texts = wrap(caption, size_px, width)[:lines]
    step, margin = line_height_px(size_px), margin_px(size_px)
    bar = Image.new("RGB", (width, step * (lines or len(texts)) + margin), background)
    pen = ImageDraw.Draw(bar)
    for number, text in enumerate(texts):
        pen.text((margin, number * step), text, fill=ink, font=font(size_px))
    return np.concatenate([image, np.array(bar)])


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    tile_px: int | None = None,
    gap_px: int | None = None,
    background: Rgb = _PAPER,
) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures in rows on one sheet, each fitted into a square tile without changing its shape.

    Args:
        images: uint8 [h, w, 3] of any sizes.
        captions: A text for each picture, below it.
        columns: Pictures a row; by default about as many as there are rows.
        tile_px: Side of a tile; by default the longest side of all pictures. Small pictures are enlarged
            by whole factors, large ones reduced.
        gap_px: Space between tiles.
        background: Colour of the sheet.
    Raises:
        ValueError: No pictures, one that is not uint8 [h, w, 3], or another number of captions.
    """
    if not images:
        raise ValueError("contact_sheet: expected at least one picture, got none")
    for number, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            got = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"contact_sheet: picture {number}: expected uint8 [h, w, 3], got {got}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"contact_sheet: expected {len(images)} captions, got {len(captions)}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    side = tile_px or max(max(image.shape[:2]) for image in images)
    gap = max(2, side // 40) if gap_px is None else gap_px
    tiles = [_fitted(image, side, background) for image in images]
    if captions is not None:
        size_px = max(text_height_px(side, side), side // 19)
        lines = max(len(wrap(caption, size_px, side)) for caption in captions)
        tiles = [
            captioned(tile, caption, size_px=size_px, lines=lines, background=background)
            for tile, caption in zip(tiles, captions, strict=True)
        ]
    height = tiles[0].shape[0]
    rows = math.ceil(len(tiles) / columns)
    sheet = np.empty((rows * (height + gap) + gap, columns * (side + gap) + gap, 3), dtype=np.uint8)
    sheet[:] = background
    for number, tile in enumerate(tiles):
        top, left = (
            gap + place * (size + gap)
            for place, size in zip(divmod(number, columns), (height, side), strict=True)
        )
        sheet[top : top + height, left : left + side] = tile
    return sheet


def _fitted(image: np.ndarray, side: int, background: Rgb) -> np.ndarray:
    """The picture in the middle of a square."""
    longest = max(image.shape[:2])
    if longest > side:
        height, width = (max(1, round(length * side / longest)) for length in image.shape[:2])
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    else:
        image = enlarge(image, side // longest)
    tile = np.empty((side, side, 3), dtype=np.uint8)
    tile[:] = background
    height, width = image.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    tile[top : top + height, left : left + width] = image
    return tile


def legend(
    names: Sequence[str], colors: Sequence[Rgb], *, width_px: int, size_px: int = 13, background: Rgb = _PAPER
) -> UInt8[np.ndarray, "h w 3"]:
    """Names beside squares of their colours, in as many rows as `width_px` needs.

    Raises:
        ValueError: The numbers of names and colours differ.
    """
    if len(names) != len(colors):
        raise ValueError(f"legend: expected a colour for each of {len(names)} names, got {len(colors)}")
    margin, height = margin_px(size_px), line_height_px(size_px) + margin_px(size_px)
    places, left, top = [], 0, 0
    for name in names:
        needed = size_px + measure(name, size_px)[0] + 2 * margin
        if left and left + needed > width_px:
            left, top = 0, top + height
        places.append((left, top))
        left += needed
    canvas = Image.new("RGB", (width_px, top + height), background)
    pen = ImageDraw.Draw(canvas)
    for name, color, (left, top) in zip(names, colors, places, strict=True):
        pen.rectangle((left, top + margin, left + size_px - 1, top + margin + size_px - 1), fill=color)
        pen.text((left + size_px + margin, top + margin // 2), plain(name), fill=_INK, font=font(size_px))
    return np.array(canvas)
