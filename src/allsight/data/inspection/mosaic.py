"""Samples as pictures, with what is annotated drawn on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from allsight import draw
from allsight.data.inspection.driving import DrawsFrames, drive_sheet
from allsight.data.readers import NamedReader
from allsight.data.transforms import Window, crop_and_resize
from allsight.types import (
    DataError,
    Image,
    LabelMap,
    Objects,
    Panoptic,
    Sample,
    Text,
    Video,
    class_name,
)

_TILE_PX = 320
_LEGEND = 48
"""At most so many classes are explained below the pictures."""
_CAPTION = 240
"""Longer captions are cut, or their pictures would be lost among words."""

_Picture = UInt8[np.ndarray, "h w 3"]


def mosaic(reader: NamedReader, count: int = 16) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet of samples evenly spread over a split; those that cannot be read are named in their place.

    Below it is a key to the colours of classes, where pixels have classes. Drives are fewer and larger
    (`drive_sheet`).

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"mosaic: expected a count of at least 1, got {count}")
    if isinstance(reader, DrawsFrames):
        return drive_sheet(reader, count)
    indices = np.unique(np.linspace(0, len(reader) - 1, min(count, len(reader))).round().astype(int))
    tiles, captions = [], []
    seen: set[int] = set()
    for index in indices.tolist():
        try:
            sample = reader[index]
        except DataError as error:
            tiles.append(np.full((_TILE_PX, _TILE_PX, 3), 235, np.uint8))
            captions.append(str(error)[:_CAPTION])
            continue
        tiles.append(draw_sample(sample, reader.classes))
        captions.append(_caption(sample, reader.classes))
        seen |= _pixel_classes(sample)
    sheet = draw.contact_sheet(tiles, captions, tile_px=_TILE_PX)
    if not seen:
        return sheet
    shown = sorted(seen)[:_LEGEND]
    names = [class_name(label, reader.classes) for label in shown]
    if len(seen) > len(shown):
        names[-1] += f", and {len(seen) - len(shown)} more classes"
    return np.concatenate([sheet, draw.legend(names, _colours(shown), width_px=sheet.shape[1])])


def draw_sample(sample: Sample, classes: tuple[str, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a sample, 320 px at its longer side, with its objects, segments or label map.

    A video shows its middle frame; a sample without a picture is an empty sheet.
    """
    image = sample.inputs.get("image")
    video = sample.inputs.get("video")
    if isinstance(video, Video) and image is None:
        image = Image(video.frames[len(video.frames) // 2])
        sample = Sample(sample.id, {"image": image})
    if not isinstance(image, Image):
        return np.full((_TILE_PX // 4, _TILE_PX, 3), 235, np.uint8)
    height, width = image.hw_px
    scale = _TILE_PX / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    sample = crop_and_resize(sample, Window(0, 0, width, height), size)
    picture = sample.image.pixels.permute(1, 2, 0).contiguous().numpy()
    for target in sample.targets.values():
        if isinstance(target, LabelMap):
            colours = _colours(range(max(256, len(classes))))
            picture = draw.draw_label_map(picture, target.pixels.numpy(), colours, ignore=target.ignore)
        elif isinstance(target, Panoptic):
            masks = target.pixels.numpy() == np.arange(len(target))[:, None, None]
            picture = draw.draw_masks(picture, masks, colors=_colours(target.labels.tolist()))
        elif isinstance(target, Objects):
            picture = _with_objects(picture, target, classes)
    return picture


def _with_objects(picture: _Picture, objects: Objects, classes: tuple[str, ...]) -> _Picture:
    labels = objects.labels.tolist()
    colours = _colours(labels)
    if objects.masks is not None:
        picture = draw.draw_masks(picture, objects.masks.numpy(), colors=colours)
    names = [class_name(label, classes) for label in labels]
    if objects.is_crowd is not None:
        names = [
            f"{name} (crowd)" if is_crowd else name
            for name, is_crowd in zip(names, objects.is_crowd, strict=True)
        ]
    picture = draw.draw_boxes(picture, objects.boxes_xyxy_px.numpy(), labels=names, colors=colours)
    if objects.keypoints is not None:
        for points, colour in zip(objects.keypoints.numpy(), colours, strict=True):
            labelled = points[points[:, 2] > 0]
            picture = draw.draw_points(picture, labelled[:, :2], colour)
    return picture


def _caption(sample: Sample, classes: tuple[str, ...]) -> str:
    parts = []
    for part in sample.inputs.values():
        if isinstance(part, Text):
            parts.append(part.string)
    targets = sample.targets
    if isinstance(targets.get("label"), int):
        parts.append(class_name(targets["label"], classes))
    if targets.get("captions"):
        parts.append(targets["captions"][0])
    if targets.get("answers"):
        parts.append(f"- {targets.get('answer', targets['answers'][0])}")
    return " ".join(parts)[:_CAPTION] or sample.id


def _pixel_classes(sample: Sample) -> set[int]:
    found: set[int] = set()
    for target in sample.targets.values():
        if isinstance(target, LabelMap):
            found |= {value for value in target.pixels.unique().tolist() if value != target.ignore}
        elif isinstance(target, Panoptic):
            found |= set(target.labels.tolist())
    return found


def _colours(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """One for each class, the same in every picture."""
    count = min(256, max(labels, default=0) + 1)
    return [draw.palette(count)[label % count] for label in labels]
