"""What every geometric transform is made of: move a picture and all that is annotated on it together.

Coordinates are edges of pixels: a picture of width w spans 0 to w, its first pixel 0 to 1, and a box from x0
to x1 is x1 - x0 wide. The input `image` is moved, and with it every target that is `Objects`, `LabelMap` or
`Panoptic`; other inputs and targets stay as they are. Samples are never changed in place; pixels that moved
lie in memory of their own.

Letters in shapes: h w a picture, n objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from allsight.ops.resample import Interpolation, resample_window
from allsight.types import Image, LabelMap, Objects, Panoptic, Sample

PixelMap = LabelMap | Panoptic
"""Targets that say something of every pixel, `ignore` outside the picture."""

FILL = (124, 116, 104)
"""RGB of padding: the mean of ImageNet, which is 0 after the usual normalisation."""


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels in a picture; it may reach over the edges, which pads."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Cut:
    """A window that was chosen and is not cut out yet; the arguments are those of `crop_and_resize`."""

    window: Window
    hw_px: tuple[int, int]
    interpolation: Interpolation = "bilinear"
    fill: tuple[int, int, int] = FILL

    def of(self, sample: Sample, *, mirrored: bool = False) -> Sample:
        """What it cuts out of the sample that it was chosen for."""
        return crop_and_resize(
            sample,
            self.window,
            self.hw_px,
            interpolation=self.interpolation,
            fill=self.fill,
            mirrored=mirrored,
        )


def crop_and_resize(
    sample: Sample,
    window: Window,
    hw_px: tuple[int, int],
    *,
    interpolation: Interpolation = "bilinear",
    fill: tuple[int, int, int] = FILL,
    mirrored: bool = False,
) -> Sample:
    """Cut `window` out of the picture and bring it to `hw_px`.

    Pictures are resized with antialiasing, masks and label maps take the pixel under each new pixel's middle.
    Padding at the right and below (`valid_hw_px`) is taken off first. Objects of which nothing is left are
    dropped: no area inside the window, or no pixel of their mask. The box of an object that the window cuts
    becomes the tight box of what is left of its mask; without masks it is clipped.

    Args:
        fill: RGB outside the picture; floating-point pictures get 0, masks False, label maps their `ignore`.
        mirrored: Do as `flip_horizontally` does afterwards, in the same pass over the pixels.
    """
    sample = without_padding(sample)
    source_hw = sample.image.hw_px
    if hw_px == source_hw and window == Window(0, 0, source_hw[1], source_hw[0]):
        return flip_horizontally(sample) if mirrored else sample

    def places() -> tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]:
        # Only annotations need them.
        return (
            _nearest(window.top, window.height, hw_px[0]),
            _nearest(window.left, window.width, hw_px[1]),
        )

    def move_image(image: Image) -> Image:
        pixels = resample(image.pixels, window, hw_px, interpolation, fill, mirrored)
        return Image(pixels, original_hw_px=image.original_hw_px or source_hw)

    def move_labels(labels: PixelMap) -> PixelMap:
        picked = _pick(labels.pixels, *places(), labels.ignore)
        return replace(labels, pixels=_mirrored(picked, hw_px) if mirrored else picked)

    def move_objects(objects: Objects) -> Objects:
        cropped = _crop_objects(objects, window, hw_px, *places())
        return _mirrored_objects(cropped, hw_px) if mirrored else cropped

    return apply(sample, move_image, move_objects, move_labels)


def flip_horizontally(sample: Sample) -> Sample:
    """Mirror left and right. Padding at the right (`valid_hw_px`) stays at the right."""
    hw_px = sample.image.valid_hw_px or sample.image.hw_px
    return apply(
        sample,
        lambda image: replace(image, pixels=_mirrored(image.pixels, hw_px)),
        lambda objects: _mirrored_objects(objects, hw_px),
        lambda labels: replace(labels, pixels=_mirrored(labels.pixels, hw_px)),
    )


def pad_right_and_below(
    sample: Sample, hw_px: tuple[int, int], *, fill: tuple[int, int, int] = FILL
) -> Sample:
    """Put the picture into the upper left corner of a canvas of `hw_px`, and say so in `valid_hw_px`."""
    sample = without_padding(sample)
    valid = sample.image.hw_px
    if valid[0] > hw_px[0] or valid[1] > hw_px[1]:
        raise ValueError(f"sample {sample.id!r}: picture of {valid} px does not fit a canvas of {hw_px} px")
    window = Window(0, 0, hw_px[1], hw_px[0])
    rows, columns = _nearest(0, hw_px[0], hw_px[0]), _nearest(0, hw_px[1], hw_px[1])
    return apply(
        sample,
        lambda image: replace(
            image,
            pixels=_cut(image.pixels, window, fill),
            original_hw_px=image.original_hw_px or valid,
            valid_hw_px=valid,
        ),
        lambda objects: replace(
            objects,
            masks=None if objects.masks is None else _pick(objects.masks, rows, columns, False),
        ),
        lambda labels: replace(labels, pixels=_pick(labels.pixels, rows, columns, labels.ignore)),
    )


def without_padding(sample: Sample) -> Sample:
    """The sample with what lies outside `valid_hw_px` taken off."""
    valid = sample.image.valid_hw_px
    if valid is None:
        return sample
    height, width = valid
    return apply(
        sample,
        lambda image: replace(image, pixels=image.pixels[:, :height, :width], valid_hw_px=None),
        lambda objects: replace(
            objects, masks=None if objects.masks is None else objects.masks[:, :height, :width]
        ),
        lambda labels: replace(labels, pixels=labels.pixels[:height, :width]),
    )


def apply(
    sample: Sample,
    on_image: Callable[[Image], Image],
    on_objects: Callable[[Objects], Objects] | None = None,
    on_labels: Callable[[PixelMap], PixelMap] | None = None,
) -> Sample:
    """A new sample: `image` and each target of these kinds replaced by what the functions make of them.

    Panoptic segments of which no pixel is left are dropped.
    """

    def changed(target: Any) -> Any:
        if on_objects is not None and isinstance(target, Objects):
            return on_objects(target)
        if on_labels is not None and isinstance(target, PixelMap):
            moved = on_labels(target)
            return moved.visible() if isinstance(moved, Panoptic) else moved
        return target

    return Sample(
        sample.id,
        {**sample.inputs, "image": on_image(sample.image)},
        {name: changed(target) for name, target in sample.targets.items()},
        sample.views,
    )


def resample(
    pixels: Shaped[Tensor, "3 _ _"],
    window: Window,
    hw_px: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    fill: tuple[int, int, int] = FILL,
    mirrored: bool = False,
) -> Shaped[Tensor, "3 _ _"]:
    """Cut a window out and resize it with antialiasing, in memory order [h, w, 3]; uint8 stays uint8."""
    height, width = pixels.shape[1:]
    is_same_size = (window.height, window.width) == hw_px
    is_inside = (
        min(window.top, window.left) >= 0
        and window.top + window.height <= height
        and window.left + window.width <= width
    )
    if is_same_size or not is_inside or pixels.dtype is not torch.uint8:
        pixels = _cut(pixels, window, fill)
        window = Window(0, 0, window.width, window.height)
    if is_same_size:
        return pixels.flip(-1) if mirrored else pixels
    if pixels.dtype is torch.uint8:
        where = (window.top, window.left, window.height, window.width)
        return resample_window(pixels, where, hw_px, interpolation=interpolation, mirrored=mirrored)
    resized = functional.interpolate(pixels[None], hw_px, mode=interpolation, antialias=True)[0]
    return resized.flip(-1) if mirrored else resized


def tight_boxes(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """The smallest box around each mask, as edges; zeros where a mask is empty."""
    values = masks.numpy()
    edges = []
    # numpy reduces booleans some twenty times as fast as torch does on a CPU.
    for along, across in ((2, 1), (1, 2)):
        profile, places = values.any(across), np.arange(values.shape[along])
        last = np.where(profile, places + 1, 0).max(1, initial=0)
        first = np.where(profile, places, len(places)).min(1, initial=len(places))
        edges.append((np.minimum(first, last), last))
    (left, right), (top, bottom) = edges
    return torch.from_numpy(np.stack((left, top, right, bottom), 1).astype(np.float32))


def keep_visible(objects: Objects) -> Objects:
    """The objects whose box has an area, and whose mask, if there are masks, has a pixel."""
    left, top, right, bottom = objects.boxes_xyxy_px.unbind(1)
    keep = (right > left) & (bottom > top)
    if objects.masks is not None:
        keep &= torch.from_numpy(objects.masks.numpy().any((1, 2)))
    return objects if bool(keep.all()) else objects.select(keep)


def place_keypoints(
    keypoints: Float[Tensor, "n k 3"], xy_px: Float[Tensor, "n k 2"], hw_px: tuple[int, int]
) -> Float[Tensor, "n k 3"]:
    """The keypoints at new places; those outside a picture of this size become unlabelled."""
    limit = xy_px.new_tensor([hw_px[1], hw_px[0]])
    kept = (keypoints[..., 2] > 0) & ((xy_px >= 0) & (xy_px <= limit)).all(-1)
    return torch.cat((xy_px, keypoints[..., 2:]), -1).where(kept[..., None], 0.0)


def mirror_keypoints(objects: Objects, width: int) -> Float[Tensor, "n k 3"]:
    """Keypoints in the mirrored picture: moved, and the two of each pair exchanged."""
    assert objects.keypoints is not None
    order = list(range(objects.keypoints.shape[1]))
    for one, other in objects.keypoint_pairs:
        order[one], order[other] = other, one
    x, y, seen = objects.keypoints[:, order].unbind(-1)
    return torch.stack((torch.where(seen > 0, width - x, x), y, seen), -1)


def _mirrored(pixels: Tensor, hw_px: tuple[int, int]) -> Tensor:
    """Left and right exchanged in the upper left part of this size."""
    height, width = hw_px
    if tuple(pixels.shape[-2:]) == hw_px:
        return pixels.flip(-1)
    flipped = pixels.clone()
    flipped[..., :height, :width] = pixels[..., :height, :width].flip(-1)
    return flipped


def _mirrored_objects(objects: Objects, hw_px: tuple[int, int]) -> Objects:
    width = hw_px[1]
    left, top, right, bottom = objects.boxes_xyxy_px.unbind(1)
    return replace(
        objects,
        boxes_xyxy_px=torch.stack((width - right, top, width - left, bottom), 1),
        masks=None if objects.masks is None else _mirrored(objects.masks, hw_px),
        keypoints=None if objects.keypoints is None else mirror_keypoints(objects, width),
    )


def _crop_objects(
    objects: Objects,
    window: Window,
    hw_px: tuple[int, int],
    rows: Int64[np.ndarray, " _"],
    columns: Int64[np.ndarray, " _"],
) -> Objects:
    boxes = objects.boxes_xyxy_px
    origin = boxes.new_tensor([window.left, window.top, window.left, window.top])
    size = boxes.new_tensor([window.width, window.height, window.width, window.height])
    local = boxes - origin
    inside = local.clamp(min=0).minimum(size)
    masks = objects.masks
    if masks is not None:
        cut = (inside != local).any(1)
        if bool(cut.any()):
            whole_rows = np.arange(window.top, window.top + window.height)
            whole_columns = np.arange(window.left, window.left + window.width)
            seen = _pick(masks[cut], whole_rows, whole_columns, False)
            inside[cut] = tight_boxes(seen).to(inside.dtype)
        masks = _pick(masks, rows, columns, False)
    new_size = boxes.new_tensor([hw_px[1], hw_px[0], hw_px[1], hw_px[0]])
    keypoints = objects.keypoints
    if keypoints is not None:
        keypoints = place_keypoints(
            keypoints, (keypoints[..., :2] - origin[:2]) * new_size[:2] / size[:2], hw_px
        )
    # In this order the window's edges become the picture's edges exactly.
    return keep_visible(
        replace(objects, boxes_xyxy_px=inside * new_size / size, masks=masks, keypoints=keypoints)
    )


def _nearest(start: int, size: int, new_size: int) -> Int64[np.ndarray, " _"]:
    """For each new pixel the index of the old one under its middle."""
    return start + ((2 * np.arange(new_size, dtype=np.int64) + 1) * size) // (2 * new_size)


def _pick(
    values: Tensor, rows: Int64[np.ndarray, " _"], columns: Int64[np.ndarray, " _"], outside: int | bool
) -> Tensor:
    """`values[..., rows, columns]` for sorted indices, with `outside` where one lies beyond the edges."""
    height, width = values.shape[-2:]
    top, bottom = np.searchsorted(rows, (0, height)).tolist()
    left, right = np.searchsorted(columns, (0, width)).tolist()
    picked = _pick_inside(values.numpy(), rows[top:bottom], columns[left:right])
    if picked.shape[-2:] == (len(rows), len(columns)):
        return torch.from_numpy(picked)
    padded = values.new_full((*values.shape[:-2], len(rows), len(columns)), outside)
    padded[..., top:bottom, left:right] = torch.from_numpy(picked)
    return padded


def _pick_inside(
    values: np.ndarray, rows: Int64[np.ndarray, " _"], columns: Int64[np.ndarray, " _"]
) -> np.ndarray:
    if _is_run(rows) and _is_run(columns):
        down = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0)
        across = slice(columns[0], columns[-1] + 1) if len(columns) else slice(0)
        return values[..., down, across].copy()
    return values.take(rows, -2).take(columns, -1)


def _is_run(indices: Int64[np.ndarray, " _"]) -> bool:
    """Whether evenly spread indices are one after the other."""
    return len(indices) == 0 or bool(indices[-1] - indices[0] == len(indices) - 1)


def _cut(
    pixels: Shaped[Tensor, "3 _ _"], window: Window, fill: tuple[int, int, int]
) -> Shaped[Tensor, "3 _ _"]:
    """The window as a picture of its own, stored [h, w, 3]."""
    height, width = pixels.shape[1:]
    if window == Window(0, 0, width, height):
        return pixels
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.height, height), min(window.left + window.width, width)
    inside = pixels[:, top : max(bottom, top), left : max(right, left)].permute(1, 2, 0)
    if (window.height, window.width) == tuple(inside.shape[:2]):
        # Not `contiguous`, which would keep the whole picture alive behind a window of full width.
        return inside.clone(memory_format=torch.contiguous_format).permute(2, 0, 1)
    padded = pixels.new_empty((window.height, window.width, 3))
    y, x = top - window.top, left - window.left
    rows, columns = slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1])
    padded[rows, columns] = inside
    outside = pixels.new_tensor(fill) if pixels.dtype is torch.uint8 else 0
    # Only what is outside: to fill three channels with three values takes longer than to resize the picture.
    for part in (padded[: rows.start], padded[rows.stop :], padded[rows, :x], padded[rows, columns.stop :]):
        part[:] = outside
    return padded.permute(2, 0, 1)
