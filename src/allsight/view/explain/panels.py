"""The pictures of an explanation: sampling points, displacements, receptive fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from allsight.draw import captioned, color_bar, draw_cross, draw_dots, draw_heat, heat_colors
from allsight.view.explain.field import SHARES, Field
from allsight.view.explain.sampling import LayerSampling, by_stage, seen_from

_SIDE_PX, _GAP_PX, _LETTERS_PX = 384, 14, 17
_RED, _GREEN = (224, 32, 32), (60, 235, 90)
_DEEP = 3
_CELLS = 24
_BEYOND = 0.22
"""How far beyond the picture samples are shown, in units of its side."""
_DECADES = 3

Picture = UInt8[np.ndarray, "_ _ 3"]


def sampling_panels(
    picture: UInt8[np.ndarray, "h w 3"], layers: Sequence[LayerSampling], yx_share: tuple[float, float]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A column for each stage: above what its last layer reads for one place, below what its last three do.

    Args:
        picture: As the model saw it.
        layers: All deformable layers on it.
        yx_share: The place, in units of height and width, from the upper left.
    """
    columns = []
    for own in by_stage(layers).values():
        rows, cells = own[-1].sampling.points_xy.shape[1:3]
        place = (min(int(yx_share[0] * rows), rows - 1), min(int(yx_share[1] * cells), cells - 1))
        below = list(layers[: list(layers).index(own[-1]) + 1])
        columns.append([_one_layer(picture, own[-1], place), _deep(picture, below[-_DEEP:], place)])
    return _grid(columns)


def _one_layer(picture: Picture, layer: LayerSampling, place: tuple[int, int]) -> Picture:
    view = _View.around(picture, place, layer.stride)
    points, shares = layer.points_px()[0, place[0], place[1]], layer.shares()[0, place[0], place[1]]
    groups, each = shares.shape
    # Areas are proportional to weights; many groups get smaller dots, so that they do not hide each other.
    radii = 6.5 / np.sqrt(1 + groups / 8) * np.sqrt(shares.reshape(-1) * each) + 1
    canvas = draw_dots(view.canvas, view.of(points.reshape(-1, 2)), radii, _RED, alpha=0.7)
    canvas = _mark(canvas, view, place, layer.stride)
    text = f"stage {layer.stage}: {groups} x {each} samples, {_outside(picture, points, shares)}"
    return _titled(canvas, f"{text}; {view.width_px} px")


def _deep(picture: Picture, layers: list[LayerSampling], place: tuple[int, int]) -> Picture:
    view = _View.around(picture, place, layers[-1].stride)
    points = seen_from(layers, place)
    canvas = draw_dots(view.canvas, view.of(points), np.full(len(points), 2.2), _RED, alpha=0.25)
    canvas = _mark(canvas, view, place, layers[-1].stride)
    many = f"{len(layers)} layers" if len(layers) > 1 else "this layer"
    outside = _outside(picture, points, np.full(len(points), 1 / len(points)))
    return _titled(canvas, f"through {many}, {outside}")


@dataclass(frozen=True)
class _View:
    """A square part of the picture, pale, what lies beyond it grey."""

    canvas: Picture
    left_px: int
    top_px: int
    width_px: int

    @classmethod
    def around(cls, picture: Picture, place: tuple[int, int], stride: int) -> _View:
        """As many cells as samples spread over, or all of the picture and a frame around it."""
        height, width = picture.shape[:2]
        whole = round(max(height, width) * (1 + 2 * _BEYOND))
        side = min(whole, _CELLS * stride)
        middle = (height // 2, width // 2) if side == whole else (place[0] * stride, place[1] * stride)
        top, left = (at - side // 2 for at in middle)
        square = Image.new("RGB", (side, side), (236, 236, 236))
        pale = np.rint(255 - (255 - picture.astype(np.float32)) * 0.7).astype(np.uint8)
        square.paste(Image.fromarray(pale), (-left, -top))
        shown = square.resize((_SIDE_PX, _SIDE_PX), _way(_SIDE_PX / side))
        return cls(np.array(shown), left, top, side)

    def of(self, points_px: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Where pixels (x, y) of the picture are on the canvas."""
        origin = np.array([self.left_px, self.top_px])
        return (points_px - origin + 0.5) * (_SIDE_PX / self.width_px) - 0.5


def _outside(picture: Picture, points: np.ndarray, shares: np.ndarray) -> str:
    """How much of the weight lies beyond the picture, where everything is zero."""
    height, width = picture.shape[:2]
    beyond = ((points < -0.5) | (points > np.array([width, height]) - 0.5)).any(-1)
    return f"{float(shares[beyond].sum() / shares.sum()):.0%} outside"


def displacement_panels(
    picture: UInt8[np.ndarray, "h w 3"], layers: Sequence[LayerSampling]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A panel for each stage: how far its last layer's samples are moved, by weight, over the picture."""
    panels = []
    for stage, own in by_stage(layers).items():
        layer = own[-1]
        moved = (layer.displacement_px() * layer.shares())[0].sum(-1).mean(-1)
        canvas, factor = _enlarged(picture)
        low, high = float(moved.min()), float(moved.max())
        level = _stretched(moved, layer.stride * factor, canvas.shape[:2])
        strength = (level - low) / max(high - low, 1e-9)
        bar = color_bar(
            [f"{low:.1f} px", f"{high:.1f} px"],
            width_px=canvas.shape[1],
            height_px=12,
            size_px=_LETTERS_PX - 2,
        )
        body = np.concatenate([draw_heat(canvas, strength, alpha=0.6), bar])
        panels.append([_titled(body, f"stage {stage}: mean displacement of a sample")])
    return _grid(panels)


def field_panels(fields: Sequence[Field]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A panel for each map: the effective receptive field of its middle, on a logarithmic scale."""
    panels = []
    for field in fields:
        level = np.log10(np.maximum(field.strength, 10.0**-_DECADES)) / _DECADES + 1
        canvas, factor = _enlarged(heat_colors(level))
        canvas = _squares(canvas, field, factor)
        bar = color_bar(
            [f"1e-{_DECADES - i}" if i < _DECADES else "1" for i in range(_DECADES + 1)],
            width_px=canvas.shape[1],
            height_px=12,
            size_px=_LETTERS_PX - 2,
        )
        held = ", ".join(f"{share:.0%} in {side} px" for share, side in field.side_px.items())
        panels.append(
            [_titled(np.concatenate([canvas, bar]), f"stage {field.stage}, stride {field.stride}: {held}")]
        )
    return _grid(panels)


def _squares(canvas: Picture, field: Field, factor: float) -> Picture:
    """The squares that hold each share, around the center."""
    drawn = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawn)
    for share, color in zip(SHARES, ((255, 255, 255), (150, 200, 255)), strict=True):
        reach = field.side_px[share] / 2 * factor
        y, x = ((value + 0.5) * factor for value in field.center_yx_px)
        pen.rectangle((x - reach, y - reach, x + reach, y + reach), outline=color, width=2)
    return np.array(drawn)


def _enlarged(picture: Picture) -> tuple[Picture, float]:
    """The picture at the size of a panel, and by how much it was enlarged."""
    height, width = picture.shape[:2]
    factor = _SIDE_PX / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.array(Image.fromarray(picture).resize(size, _way(factor))), factor


def _way(factor: float) -> Image.Resampling:
    """Pixels are to be seen where there are few."""
    return Image.Resampling.NEAREST if factor > 3 else Image.Resampling.BICUBIC


def _mark(canvas: Picture, view: _View, place: tuple[int, int], stride: int) -> Picture:
    ((x, y),) = view.of(np.array([[place[1], place[0]]], dtype=np.float64) * stride).tolist()
    return draw_cross(canvas, (x, y), _GREEN, reach_px=9)


def _stretched(
    values: Float[np.ndarray, "h w"], cell_px: float, hw_px: tuple[int, ...]
) -> Float[np.ndarray, "h2 w2"]:
    """The values of cells at all pixels between their centers, which lie at whole multiples of `cell_px`."""
    rows, columns = (np.arange(side) / cell_px for side in hw_px)
    across = np.stack([np.interp(columns, np.arange(values.shape[1]), row) for row in values])
    return np.stack([np.interp(rows, np.arange(values.shape[0]), column) for column in across.T], axis=1)


def _titled(panel: Picture, text: str) -> Picture:
    return captioned(panel, text, size_px=_LETTERS_PX)


def _grid(columns: list[list[Picture]]) -> UInt8[np.ndarray, "h w 3"]:
    """Panels of one width in columns, on white."""
    rows = max(map(len, columns))
    heights = [max(column[row].shape[0] for column in columns) for row in range(rows)]
    width = columns[0][0].shape[1]
    sheet = np.full(
        (sum(heights) + _GAP_PX * (rows + 1), (width + _GAP_PX) * len(columns) + _GAP_PX, 3), 255, np.uint8
    )
    for number, column in enumerate(columns):
        top, left = _GAP_PX, _GAP_PX + number * (width + _GAP_PX)
        for row, panel in enumerate(column):
            sheet[top : top + panel.shape[0], left : left + width] = panel
            top += heights[row] + _GAP_PX
    return sheet
