"""Drives to look at: a clip of six cameras and the panel from above as a moving picture."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from allsight.data.inspection.driving import DrawsFrames, draw_rig, ego_path
from allsight.data.inspection.moments import RigView, Seen, draw_moment
from allsight.draw import draw_points
from allsight.models.bevformer.looking import Look
from allsight.types import Answer, BEVMapAnswer, Boxes3D, Boxes3DAnswer, Sample

_LITTLE, _SOME, _MUCH = (86, 180, 233), (240, 228, 66), (213, 94, 0)


def draw_answers(
    sample: Sample,
    answers: Sequence[Answer],
    *,
    min_score: float = 0.3,
    path_ref_m: Float[np.ndarray, "t 2"] | None = None,
    tile_px: int = 400,
) -> UInt8[np.ndarray, "h w 3"]:
    """A sample's cameras and panel with what was answered, boxes and map, in place of the truth.

    Args:
        sample: Before it was transformed, or with matrices that fit its pictures.
        answers: Of one or several tasks, in the same reference frame.
        min_score: Boxes below are not drawn.
        path_ref_m: Where the car drives.
        tile_px: Width of a camera's picture.
    """
    targets: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    for answer in answers:
        if isinstance(answer, Boxes3DAnswer):
            targets["boxes"], classes = answer.boxes(min_score), answer.classes
        elif isinstance(answer, BEVMapAnswer):
            targets["bev_map"] = answer.bev_map()
    shown = Sample(sample.id, sample.inputs, targets)
    return draw_rig(shown, classes, path_ref_m=path_ref_m, tile_px=tile_px)


def draw_attention(
    view: RigView,
    boxes: Boxes3D,
    classes: tuple[str, ...],
    looks: Sequence[Look],
    *,
    least: float = 0.1,
    tile_px: int = 400,
) -> UInt8[np.ndarray, "h w 3"]:
    """A box in all cameras and from above, with dots where the network looked for it: red much, blue little.

    Args:
        view: The cameras.
        boxes: The box alone, or with others.
        classes: Names.
        looks: What `models.bevformer.looking.looks_for` gave for it.
        least: Points of less than this share of the largest weight are not drawn.
        tile_px: Width of a camera's picture.
    """
    largest = max((float(look.weights.max()) for look in looks if len(look.weights)), default=1.0)
    pictures = list(view.pictures)
    for look in looks:
        shares = look.weights / largest
        for low, high, color in ((least, 0.3, _LITTLE), (0.3, 0.6, _SOME), (0.6, np.inf, _MUCH)):
            points = look.points_px[(shares >= low) & (shares < high)]
            pictures[look.camera] = draw_points(pictures[look.camera], points, color)
    return draw_moment(replace(view, pictures=pictures), classes, [Seen(boxes=boxes)], tile_px=tile_px)


def drive_gif(
    reader: DrawsFrames, indices: Iterable[int], file: Path, *, tile_px: int = 240, seconds: float = 0.5
) -> int:
    """Write frames of a drive as an animated GIF, annotations drawn; returns how many.

    Args:
        reader: Of drives.
        indices: Which samples, in order.
        file: Where to write.
        tile_px: Width of a camera's picture.
        seconds: How long each is shown.
    """
    pictures = [
        draw_rig(reader[n], reader.classes, path_ref_m=ego_path(reader, n), tile_px=tile_px) for n in indices
    ]
    file.write_bytes(to_gif(pictures, seconds))
    return len(pictures)


def to_gif(pictures: Sequence[np.ndarray], seconds: float) -> bytes:
    """Pictures (uint8 [h, w, 3], of any sizes) as an animated GIF of 255 colours each.

    Raises:
        ValueError: There are none.
    """
    if not pictures:
        raise ValueError("to_gif: expected at least one picture, got none")
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    frames = []
    for picture in pictures:
        padded = np.full((height, width, 3), 255, np.uint8)
        padded[: picture.shape[0], : picture.shape[1]] = picture
        frames.append(Image.fromarray(padded).quantize(255))
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 * seconds),
        loop=0,
        # Each frame in colours of its own; Pillow would else drop those equal to the one before.
        disposal=2,
    )
    return buffer.getvalue()
