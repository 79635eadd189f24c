"""Shear, shift and turn a picture together with its annotations, its size kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image as PillowImage
from torch import Tensor

from allsight.data.transforms.carry import (
    FILL,
    Interpolation,
    PixelMap,
    apply,
    keep_visible,
    place_keypoints,
    tight_boxes,
    without_padding,
)
from allsight.types import Image, Objects, Sample

Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): the new pixel at (x, y) shows the old one at (a x + b y + c, d x + e y + f).

Coordinates are edges of pixels: the middle of the first is (0.5, 0.5)."""


_FILTERS = {"bilinear": PillowImage.Resampling.BILINEAR, "bicubic": PillowImage.Resampling.BICUBIC}


def warp(
    sample: Sample,
    old_from_new: Affine,
    *,
    fill: tuple[int, int, int] = FILL,
    interpolation: Interpolation = "bilinear",
) -> Sample:
    """Look up every new pixel in the old picture: pictures between pixels, masks and label maps the nearest.

    Boxes become the tight boxes of their masks, or without masks the boxes around their moved corners;
    objects of which nothing is left are dropped. What lies outside the old picture is `fill`, False or
    `ignore`.
    Padding at the right and below (`valid_hw_px`) is taken off first.

    Raises:
        ValueError: The picture is not uint8.
    """
    sample = without_padding(sample)
    height, width = sample.image.hw_px
    a, b, c, d, e, f = old_from_new

    def move_image(image: Image) -> Image:
        picture = to_pillow(image, sample.id)
        moved = picture.transform(
            picture.size,
            PillowImage.Transform.AFFINE,
            old_from_new,
            _FILTERS[interpolation],
            fillcolor=fill,
        )
        return with_pixels(image, moved)

    if not any(isinstance(target, Objects | PixelMap) for target in sample.targets.values()):
        return apply(sample, move_image)

    x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
    old_x, old_y = np.floor(a * x + b * y + c), np.floor(d * x + e * y + f)
    outside = (old_x < 0) | (old_x >= width) | (old_y < 0) | (old_y >= height)
    places = np.where(outside, 0, old_y * width + old_x).astype(np.int64)

    def look_up(values: Tensor, beyond: int | bool) -> Tensor:
        found = values.numpy().reshape(*values.shape[:-2], height * width).take(places, -1)
        found[..., outside] = beyond
        return torch.from_numpy(found)

    def move_objects(objects: Objects) -> Objects:
        if objects.keypoints is not None:
            moved = _forward(objects.keypoints[..., :2], old_from_new)
            keypoints = place_keypoints(objects.keypoints, moved, (height, width))
            objects = replace(objects, keypoints=keypoints)
        if objects.masks is None:
            boxes = _around_corners(objects.boxes_xyxy_px, old_from_new, height, width)
            return keep_visible(replace(objects, boxes_xyxy_px=boxes))
        masks = look_up(objects.masks, False)
        boxes = tight_boxes(masks).to(objects.boxes_xyxy_px.dtype)
        return keep_visible(replace(objects, boxes_xyxy_px=boxes, masks=masks))

    return apply(
        sample,
        move_image,
        move_objects,
        lambda labels: replace(labels, pixels=look_up(labels.pixels, labels.ignore)),
    )


def shear(x: float = 0.0, y: float = 0.0) -> Affine:
    """Slant by `x` columns a row, and `y` rows a column, from the upper left corner."""
    return (1.0, x, 0.0, y, 1.0, 0.0)


def shift(x_px: float = 0.0, y_px: float = 0.0) -> Affine:
    """Move the picture to the left by `x_px` and up by `y_px`."""
    return (1.0, 0.0, x_px, 0.0, 1.0, y_px)


def turn(degrees: float, height: int, width: int) -> Affine:
    """Turn counter-clockwise about the middle."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def to_pillow(image: Image, id: str) -> PillowImage.Image:
    """The picture for Pillow's operations, which know uint8 only."""
    return PillowImage.fromarray(np.ascontiguousarray(bytes_of(image, id).permute(1, 2, 0).numpy()))


def bytes_of(image: Image, id: str) -> UInt8[Tensor, "3 h w"]:
    """The pixels of a picture that is not normalised yet.

    Raises:
        ValueError: It is.
    """
    if image.pixels.dtype is not torch.uint8:
        raise ValueError(
            f"sample {id!r}: this transform needs uint8 pixels, got {image.pixels.dtype}; put it before "
            "normalisation, or leave it out for floating-point inputs"
        )
    return image.pixels


def with_pixels(image: Image, picture: PillowImage.Image) -> Image:
    """`image` with what became of its pixels."""
    return replace(image, pixels=torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def _around_corners(
    boxes: Float[Tensor, "n 4"], old_from_new: Affine, height: int, width: int
) -> Float[Tensor, "n 4"]:
    moved = _forward(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).to(torch.float64), old_from_new)
    low, high = moved.amin(1), moved.amax(1)
    limit = torch.tensor([width, height], dtype=torch.float64)
    return torch.cat((low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)), 1).to(boxes.dtype)


def _forward(xy_px: Float[Tensor, "n k 2"], old_from_new: Affine) -> Float[Tensor, "n k 2"]:
    """Where points of the old picture lie in the new one."""
    a, b, c, d, e, f = old_from_new
    new_from_old = torch.linalg.inv(torch.tensor([[a, b], [d, e]], dtype=torch.float64))
    moved = (xy_px.to(torch.float64) - torch.tensor([c, f], dtype=torch.float64)) @ new_from_old.T
    return moved.to(xy_px.dtype)
