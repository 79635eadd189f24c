"""A picture with its answer drawn on or under it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from allsight import draw
from allsight.data.decode import read_picture
from allsight.types import Answer, ClassScores, LabelMapAnswer, TextAnswer

_READABLE_PX = 320
"""Smaller pictures are enlarged by whole factors, so that words fit under them."""


def draw_answer(picture: Path, answer: Answer) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with the answer: classes and texts as a caption, label maps as tints with a legend."""
    pixels = read_picture(picture).pixels.permute(1, 2, 0).contiguous().numpy()
    if isinstance(answer, LabelMapAnswer):
        return _with_label_map(pixels, answer)
    pixels = _enlarged(pixels)
    if isinstance(answer, ClassScores):
        return draw.captioned(pixels, ", ".join(f"{name} {score:.2f}" for name, score in answer.top(3)))
    return draw.captioned(pixels, answer.text if isinstance(answer, TextAnswer) else str(answer.to_json()))


def _with_label_map(
    pixels: UInt8[np.ndarray, "h w 3"], answer: LabelMapAnswer
) -> UInt8[np.ndarray, "h2 w2 3"]:
    label_map = answer.label_map
    height, width = label_map.shape
    if pixels.shape[:2] != (height, width):
        pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    present = [int(value) for value in np.unique(label_map) if value != 255]
    count = max([len(answer.classes), *(value + 1 for value in present)])
    colors = draw.palette(count)
    tinted = _enlarged(draw.draw_label_map(pixels, label_map, colors))
    names = [answer.classes[value] if value < len(answer.classes) else f"class {value}" for value in present]
    key = draw.legend(names, [colors[value] for value in present], width_px=tinted.shape[1])
    return np.concatenate([tinted, key])


def _enlarged(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    return draw.enlarge(pixels, max(1, round(_READABLE_PX / min(pixels.shape[:2]))))
