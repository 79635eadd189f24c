"""The pictures of a ring of cameras on one sheet, as somebody in the car would see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from allsight.draw.text import draw_text

_GAP_PX = 4


def surround(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    azimuths_rad: Float[np.ndarray, " n"],
    *,
    panel: UInt8[np.ndarray, "h w 3"] | None = None,
    tile_px: int = 400,
) -> UInt8[np.ndarray, "height width 3"]:
    """Those that look ahead in the upper row, from left to right, those that look back below.

    Args:
        images: uint8 [h, w, 3] of any sizes.
        names: Written into the pictures.
        azimuths_rad: Where each looks: 0 ahead, left positive.
        panel: A picture beside them (`draw_bev`), brought to the height of both rows.
        tile_px: Width of a picture.
    """
    turned = (np.asarray(azimuths_rad) + np.pi) % (2 * np.pi) - np.pi
    by_turn = np.argsort(np.abs(turned), kind="stable")
    ahead = by_turn[: (len(images) + 1) // 2]
    back = by_turn[(len(images) + 1) // 2 :]
    rows = [
        sorted(ahead.tolist(), key=lambda n: -turned[n]),
        # Seen from the driver's seat: what is behind at the left stays at the left.
        sorted(back.tolist(), key=lambda n: turned[n] % (2 * np.pi)),
    ]
    lines = [_row([_tile(images[n], str(names[n]), tile_px) for n in row]) for row in rows if row]
    width = max((line.shape[1] for line in lines), default=1)
    parts = []
    for line in lines:
        parts += [_widened(line, width), np.full((_GAP_PX, width, 3), 255, np.uint8)]
    sheet = np.concatenate(parts[:-1]) if parts else np.full((tile_px, 1, 3), 255, np.uint8)
    if panel is None:
        return sheet
    height = sheet.shape[0]
    size = (max(1, round(panel.shape[1] * height / panel.shape[0])), height)
    beside = np.array(Image.fromarray(panel).resize(size, Image.Resampling.LANCZOS))
    return np.concatenate([sheet, np.full((height, _GAP_PX, 3), 255, np.uint8), beside], axis=1)


def _tile(image: np.ndarray, name: str, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    tile = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    return draw_text(tile, name, size_px=max(10, width // 30))


def _row(tiles: Sequence[np.ndarray]) -> np.ndarray:
    height = max(tile.shape[0] for tile in tiles)
    parts = []
    for tile in tiles:
        padded = np.full((height, tile.shape[1], 3), 255, np.uint8)
        padded[: tile.shape[0]] = tile
        parts += [padded, np.full((height, _GAP_PX, 3), 255, np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def _widened(line: np.ndarray, width: int) -> np.ndarray:
    return np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255)
