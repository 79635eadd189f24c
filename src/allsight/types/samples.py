"""One sample before it is batched: typed inputs, typed targets, and its identity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int32, Int64, Shaped, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Crop:
    """Where a view lies in its picture, told in the frame of the picture as it was mirrored for this view.

    Args:
        top, left, height, width: The window, in pixels.
        picture_width: Of the whole picture.
        is_flipped: Whether the picture was mirrored left and right.
    """

    top: float
    left: float
    height: float
    width: float
    picture_width: float
    is_flipped: bool = False

    def numbers(self) -> tuple[float, ...]:
        """The six fields as numbers, in their order."""
        return (self.top, self.left, self.height, self.width, self.picture_width, float(self.is_flipped))


@dataclass(frozen=True)
class Image:
    """A picture, RGB.

    Args:
        pixels: uint8 as decoded, or floating point already normalised for the model; [3, h, w].
        original_hw_px: Size of the picture before transforms, so that answers can be given in it.
        valid_hw_px: Size of the part that holds picture; what lies right of it and below is padding.
        crop: Which part of a larger picture this is, where that matters (several views of one picture).
    """

    pixels: Shaped[Tensor, "3 h w"]
    original_hw_px: tuple[int, int] | None = None
    valid_hw_px: tuple[int, int] | None = None
    crop: Crop | None = None

    @property
    def hw_px(self) -> tuple[int, int]:
        return int(self.pixels.shape[-2]), int(self.pixels.shape[-1])


@dataclass(frozen=True)
class Text:
    """A text, as characters (readers) and, once a task's transform has tokenised it, as token ids.

    Args:
        string: Its characters.
        tokens: Its ids.
        cut: How many tokens were left out at the end, since there was no room for them.
    """

    string: str
    tokens: Int64[Tensor, " t"] | None = None
    cut: int = 0


@dataclass(frozen=True)
class Video:
    """Frames of one clip, uint8 [t, 3, h, w], and the time of each in seconds."""

    frames: Shaped[Tensor, "t 3 h w"]
    times_s: Float[Tensor, " t"]


@dataclass(frozen=True)
class Rig:
    """Pictures that the cameras of one rig took at one reference time, and where those cameras were.

    Args:
        images: One per camera; sizes may differ.
        img_from_ref: Pixel = dehomogenise(img_from_ref @ [x y z 1]), with the motion between each exposure
            and the reference time included.
        ego_from_ref: Reference frame to the vehicle's frame.
        world_from_ref: Reference frame to a frame fixed in the world, for temporal alignment.
        time_s: Reference time.
        camera_names: For people; order as `images`.
        can_bus: Vehicle signals as BEVFormer lays them out, see `CameraRig`; None: not known.
    """

    images: tuple[Image, ...]
    img_from_ref: Float[Tensor, "n 3 4"]
    ego_from_ref: Float[Tensor, "4 4"]
    world_from_ref: Float[Tensor, "4 4"]
    time_s: float
    camera_names: tuple[str, ...] = ()
    can_bus: Float[Tensor, " 18"] | None = None


Modality = Image | Text | Video | Rig


@dataclass(frozen=True)
class Objects:
    """Annotated things in a picture. A target that geometric transforms carry along with the pixels.

    Args:
        boxes_xyxy_px: Left, top, right, bottom edges in pixels of the current picture.
        labels: Class index of each.
        masks: Visible part of each, if annotated.
        is_crowd: A region of several things that cannot be told apart (COCO `iscrowd`).
        keypoints: Named places on each, if annotated: x and y in pixels, and 0 (not labelled or not in the
            picture; x and y are 0 too), 1 (labelled but hidden) or 2 (visible).
        keypoint_pairs: Keypoints that change places in a mirrored picture, such as left and right wrist.
    """

    boxes_xyxy_px: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n h w"] | None = None
    is_crowd: Bool[Tensor, " n"] | None = None
    keypoints: Float[Tensor, "n k 3"] | None = None
    keypoint_pairs: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return int(self.boxes_xyxy_px.shape[0])

    def select(self, keep: Shaped[Tensor, " k"]) -> Objects:
        """The things that `keep` (a boolean mask or indices) picks."""
        return replace(
            self,
            boxes_xyxy_px=self.boxes_xyxy_px[keep],
            labels=self.labels[keep],
            masks=None if self.masks is None else self.masks[keep],
            is_crowd=None if self.is_crowd is None else self.is_crowd[keep],
            keypoints=None if self.keypoints is None else self.keypoints[keep],
        )


@dataclass(frozen=True)
class LabelMap:
    """The class of each pixel; `ignore` marks pixels nobody labelled. Carried along by transforms."""

    pixels: UInt8[Tensor, "h w"]
    ignore: int = 255


@dataclass(frozen=True)
class Panoptic:
    """Each pixel's segment: one thing (a car), or all of one stuff (the sky). Carried along by transforms.

    Args:
        pixels: Index of the segment, which is a place in the other fields; -1 where nobody labelled.
        labels: Class index of each segment.
        is_thing: Things can be counted, stuff cannot.
        is_crowd: A region of several things that cannot be told apart.
    """

    ignore: ClassVar[int] = -1

    pixels: Int32[Tensor, "h w"]
    labels: Int64[Tensor, " n"]
    is_thing: Bool[Tensor, " n"]
    is_crowd: Bool[Tensor, " n"]

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def visible(self) -> Panoptic:
        """Without segments that have no pixel; the others keep their order and are numbered anew."""
        there = torch.zeros(len(self) + 1, dtype=torch.bool)
        # -1 is the last place, which is cut off.
        there[self.pixels.flatten().long()] = True
        keep = there[:-1]
        if bool(keep.all()):
            return self
        numbers = torch.full((len(self) + 1,), self.ignore, dtype=torch.int32)
        numbers[:-1][keep] = torch.arange(int(keep.sum()), dtype=torch.int32)
        return Panoptic(
            numbers[self.pixels.long()], self.labels[keep], self.is_thing[keep], self.is_crowd[keep]
        )


@dataclass(frozen=True)
class Sample:
    """One item of a data set.

    Args:
        id: Stable name within its data set, such as `train/cat/0012.jpg`; errors and events use it.
        inputs: What a model may see, by name (`image`, `text`, `rig`, ...).
        targets: What it should say: `label` (int, or a float [classes] tensor of soft labels), `objects`
            (Objects), `label_map` (LabelMap), `panoptic` (Panoptic), `captions` and `answers` (tuples of
            str), or whatever the task defines.
        views: Further inputs of the same item (pre-training looks at a picture more than once).
    """

    id: str
    inputs: dict[str, Modality]
    targets: dict[str, Any] = field(default_factory=dict)
    views: tuple[dict[str, Modality], ...] = ()

    @classmethod
    def of_image(
        cls, id: str, pixels: Shaped[Tensor, "3 h w"], targets: dict[str, Any] | None = None
    ) -> Sample:
        """A sample whose only input is one picture."""
        if pixels.dtype is not torch.uint8 and not pixels.is_floating_point():
            raise ValueError(f"sample {id!r}: pixels must be uint8 or floating point, got {pixels.dtype}")
        return cls(id, {"image": Image(pixels)}, dict(targets or {}))

    @property
    def image(self) -> Image:
        """The input called `image`; KeyError-free shorthand for the many tasks that have just one."""
        image = self.inputs.get("image")
        if not isinstance(image, Image):
            raise ValueError(f"sample {self.id!r} has no input 'image'; it has {sorted(self.inputs)}")
        return image
