"""Keypoints and panoptic segments move with the picture; videos lose frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from allsight.data.transforms import (
    HorizontalFlip,
    PickFrames,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Window,
    crop_and_resize,
    flip_horizontally,
    pad_right_and_below,
    shift,
    warp,
)
from allsight.types import DataError, Objects, Panoptic, Sample, Video


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def person() -> Sample:
    """One person on a picture of 10 x 20 with nose, left and right wrist (hidden), and an unlabelled foot."""
    keypoints = torch.tensor([[[4.0, 2.0, 2.0], [6.0, 5.0, 2.0], [2.0, 5.0, 1.0], [0.0, 0.0, 0.0]]])
    box = torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    objects = Objects(box, torch.tensor([0]), keypoints=keypoints, keypoint_pairs=((1, 2),))
    return Sample.of_image("a", torch.zeros(3, 10, 20, dtype=torch.uint8), {"objects": objects})


def keypoints(sample: Sample) -> list:
    return sample.targets["objects"].keypoints[0].tolist()


def test_mirroring_moves_keypoints_and_exchanges_left_and_right():
    assert keypoints(flip_horizontally(person())) == [[16, 2, 2], [18, 5, 1], [14, 5, 2], [0, 0, 0]]
    assert keypoints(flip_horizontally(flip_horizontally(person()))) == keypoints(person())
    padded = pad_right_and_below(person(), (16, 32))
    assert keypoints(flip_horizontally(padded)) == keypoints(flip_horizontally(person()))


def test_crops_scale_keypoints_and_those_outside_become_unlabelled():
    cut = crop_and_resize(person(), Window(3, 1, 4, 8), (16, 8))
    assert keypoints(cut) == [[2, 2, 2], [6, 8, 2], [0, 0, 0], [0, 0, 0]]
    assert cut.targets["objects"].keypoint_pairs == ((1, 2),)


def test_warps_move_keypoints():
    assert keypoints(warp(person(), shift(3.0, 1.0))) == [[1, 1, 2], [3, 4, 2], [0, 0, 0], [0, 0, 0]]


def test_picked_objects_keep_their_keypoints():
    objects = person().targets["objects"]
    both = replace(
        objects,
        boxes_xyxy_px=objects.boxes_xyxy_px.repeat(2, 1),
        labels=torch.tensor([0, 1]),
        keypoints=torch.cat((objects.keypoints, 2 * objects.keypoints)),
    )
    picked = both.select(torch.tensor([False, True]))
    assert picked.labels.tolist() == [1] and torch.equal(picked.keypoints, 2 * objects.keypoints)


def stripes(height: int = 12, width: int = 18) -> Sample:
    """Four upright stripes, the third nobody's; the picture's red says the segment, counted from 1."""
    segment = torch.arange(width).div(5, rounding_mode="floor").repeat(height, 1).to(torch.int32)
    number = torch.tensor([0, 1, -1, 2], dtype=torch.int32)[segment.long()]
    flags = torch.tensor([True, False, False])
    panoptic = Panoptic(number, torch.tensor([7, 5, 5]), ~flags, flags)
    pixels = (number + 1).to(torch.uint8).repeat(3, 1, 1)
    return Sample.of_image("a", pixels, {"panoptic": panoptic})


@pytest.mark.parametrize(
    "transform",
    [Resize((24, 36)), HorizontalFlip(1.0), RandomCrop(8), RandomCrop(30), RandomResizedCrop((12, 18))],
    ids=lambda transform: type(transform).__name__,
)
def test_segments_move_with_the_picture_and_those_that_left_it_are_dropped(transform):
    of_segment = {7: 1, 5: 2}
    for seed in range(10):
        moved = transform(stripes(), rng(seed))
        panoptic = moved.targets["panoptic"]
        assert tuple(panoptic.pixels.shape) == moved.image.hw_px
        drawn = panoptic.pixels.unique().tolist()
        assert [n for n in drawn if n >= 0] == list(range(len(panoptic)))
        assert len(panoptic.is_thing) == len(panoptic.is_crowd) == len(panoptic)
        middle = panoptic.pixels[panoptic.pixels.shape[0] // 2]
        red = moved.image.pixels[0, panoptic.pixels.shape[0] // 2]
        for number, value in zip(middle.tolist(), red.tolist(), strict=True):
            if isinstance(transform, HorizontalFlip | RandomCrop) and number >= 0:
                assert value in (of_segment[int(panoptic.labels[number])], 3)


def test_segments_that_are_left_keep_their_class():
    cut = crop_and_resize(stripes(), Window(5, 0, 13, 12), (12, 13)).targets["panoptic"]
    assert cut.labels.tolist() == [5, 5] and cut.is_crowd.tolist() == [False, False]
    assert cut.pixels[0].tolist() == [0] * 5 + [-1] * 5 + [1] * 3


def test_frames_are_picked_one_from_each_part():
    video = Video(
        torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1).repeat(1, 3, 1, 1), torch.arange(12.0)
    )
    sample = Sample("a", {"video": video})
    middle = PickFrames(4, random=False)(sample, rng()).inputs["video"]
    assert middle.times_s.tolist() == [1, 4, 7, 10] and middle.frames[:, 0, 0, 0].tolist() == [1, 4, 7, 10]
    picks = {tuple(PickFrames(4)(sample, rng(seed)).inputs["video"].times_s.tolist()) for seed in range(30)}
    assert len(picks) > 10 and all([int(t) // 3 for t in pick] == [0, 1, 2, 3] for pick in picks)
    with pytest.raises(DataError, match=r"^a: 12 frames; expected at least 13"):
        PickFrames(13)(sample, rng())
