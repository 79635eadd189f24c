"""Geometric transforms move picture, boxes, masks and label map as one, as their generator decides."""

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from allsight.data.transforms import (
    CenterCrop,
    Compose,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    RandomScale,
    Resize,
    Window,
    crop_and_resize,
    flip_horizontally,
    pad_right_and_below,
)
from allsight.data.transforms.carry import tight_boxes
from allsight.types import Image, LabelMap, Objects, Sample

quick = settings(max_examples=60, deadline=None)
all_kinds = settings(max_examples=150, deadline=None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def coordinates(height: int, width: int) -> torch.Tensor:
    """A picture whose pixels say where they are: red is the column, green the row. Stored as decoders do."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y, torch.full_like(x, 200)), 2).to(torch.uint8).permute(2, 0, 1)


def blobs(height: int, width: int, number: int, seed: int) -> torch.Tensor:
    """Masks of any shape."""
    return torch.from_numpy(np.random.default_rng(seed).random((number, height, width)) < 0.05)


def rectangles(height: int, width: int, number: int, seed: int) -> torch.Tensor:
    masks = torch.zeros(number, height, width, dtype=torch.bool)
    draw = np.random.default_rng(seed)
    for mask in masks:
        top, left = draw.integers(0, height), draw.integers(0, width)
        mask[top : draw.integers(top, height) + 1, left : draw.integers(left, width) + 1] = True
    return masks


def sample(height: int, width: int, masks: torch.Tensor | None = None, *, with_labels: bool = True) -> Sample:
    """Coordinates as picture; its label map holds the column, so that both can be compared."""
    pixels = coordinates(height, width)
    masks = blobs(height, width, 3, seed=height * 1000 + width) if masks is None else masks
    masks = masks[masks.flatten(1).any(1)]
    number = len(masks)
    targets = {
        "objects": Objects(
            tight_boxes(masks), torch.arange(number), masks, torch.zeros(number, dtype=torch.bool)
        ),
        "label": 7,
    }
    if with_labels:
        targets["label_map"] = LabelMap(pixels[0].clone())
    return Sample.of_image(f"set/{height}x{width}", pixels, targets)


def frozen(one: Sample) -> bytes:
    return pickle.dumps(one)


def assert_same(one: Sample, other: Sample) -> None:
    assert one.image.hw_px == other.image.hw_px and one.image.valid_hw_px == other.image.valid_hw_px
    assert torch.equal(one.image.pixels, other.image.pixels)
    assert torch.equal(one.targets["label_map"].pixels, other.targets["label_map"].pixels)
    mine, theirs = one.targets["objects"], other.targets["objects"]
    assert torch.equal(mine.labels, theirs.labels) and torch.equal(mine.masks, theirs.masks)
    torch.testing.assert_close(mine.boxes_xyxy_px, theirs.boxes_xyxy_px, rtol=0, atol=1e-4)


sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))
seeds = st.integers(0, 2**32 - 1)

RANDOM = [
    RandomCrop(24),
    RandomCrop((40, 17), padding_px=4),
    RandomResizedCrop(32),
    RandomResizedCrop((16, 40), area=(0.3, 1.0), interpolation="bicubic"),
    RandomScale(0.5, 2.0),
    HorizontalFlip(),
]
FIXED = [
    Resize(24),
    Resize((10, 50)),
    Resize(20, how="short"),
    Resize(20, how="short", longest_px=30),
    Resize((30, 20), how="fit"),
    CenterCrop(24),
    HorizontalFlip(1.0),
]


@all_kinds
@given(transform=st.sampled_from(RANDOM + FIXED), size=sizes, seed=seeds)
def test_every_transform_keeps_types_shapes_and_its_input(transform, size, seed):
    before = sample(*size)
    kept = frozen(before)
    after = transform(before, rng(seed))
    assert frozen(before) == kept
    hw = after.image.hw_px
    assert after.image.pixels.dtype is torch.uint8
    assert after.image.original_hw_px in (size, None) and (hw == size or after.image.original_hw_px == size)
    assert tuple(after.targets["label_map"].pixels.shape) == hw
    objects = after.targets["objects"]
    assert tuple(objects.masks.shape) == (len(objects), *hw)
    assert len(objects.labels) == len(objects.is_crowd) == len(objects)
    boxes = objects.boxes_xyxy_px
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor([hw[1], hw[0]])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all() and objects.masks.flatten(1).any(1).all()
    assert after.targets["label"] == 7 and after.id == before.id


@all_kinds
@given(
    crop=st.sampled_from([t for t in RANDOM + FIXED if hasattr(t, "cut")]),
    flip=st.sampled_from([HorizontalFlip(), HorizontalFlip(1.0)]),
    size=sizes,
    seed=seeds,
)
def test_a_crop_and_a_flip_in_one_pass_give_what_they_give_one_by_one(crop, flip, size, seed):
    before, one_by_one, together = sample(*size), rng(seed), rng(seed)
    after = Compose(crop, flip)(before, together)
    assert_same(after, flip(crop(before, one_by_one), one_by_one))
    assert after.image.pixels.stride() == crop(before, rng(seed)).image.pixels.stride()
    assert together.random() == one_by_one.random()


def test_a_subclass_of_a_crop_is_called_itself():
    @dataclass(frozen=True)
    class Dark(RandomCrop):
        def __call__(self, sample, rng):
            image = super().__call__(sample, rng).image
            return replace(sample, inputs={"image": replace(image, pixels=image.pixels // 2)}, targets={})

    white = Sample.of_image("a", torch.full((3, 9, 9), 255, dtype=torch.uint8))
    assert (Compose(Dark(4), HorizontalFlip(1.0))(white, rng(0)).image.pixels == 127).all()


@all_kinds
@given(
    transform=st.sampled_from(RANDOM + FIXED),
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    seed=seeds,
)
def test_boxes_are_the_tight_boxes_of_their_masks_afterwards(transform, size, seed):
    before = sample(*size, rectangles(*size, 4, seed))
    objects = transform(before, rng(seed)).targets["objects"]
    # One pixel, for masks take the pixel under each new pixel's middle.
    torch.testing.assert_close(objects.boxes_xyxy_px, tight_boxes(objects.masks), rtol=0, atol=1.0)


@quick
@given(
    transform=st.sampled_from(
        [RandomCrop(24), RandomCrop((40, 17), padding_px=4), CenterCrop(30), HorizontalFlip()]
    ),
    size=sizes,
    seed=seeds,
)
def test_without_resizing_boxes_are_exactly_tight_and_pixels_are_copies(transform, size, seed):
    after = transform(sample(*size), rng(seed))
    objects, pixels = after.targets["objects"], after.image.pixels
    assert torch.equal(objects.boxes_xyxy_px, tight_boxes(objects.masks))
    labels = after.targets["label_map"].pixels
    inside = labels != 255
    assert torch.equal(pixels[0][inside], labels[inside])
    # All that is not picture is padding: fill in the picture, ignore in the label map, nothing in masks.
    assert (pixels[:, ~inside] == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None]).all()
    assert not objects.masks[:, ~inside].any()


@quick
@given(
    transform=st.sampled_from([RandomResizedCrop(48), Resize(40), Resize((64, 30))]),
    size=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    seed=seeds,
)
def test_resized_label_maps_stay_aligned_with_the_picture(transform, size, seed):
    after = transform(sample(*size), rng(seed))
    pixels, labels = after.image.pixels[0].int(), after.targets["label_map"].pixels.int()
    # The picture is linear in its coordinates: away from the edges interpolation gives the coordinate itself.
    middle = (slice(None), slice(4, -4))
    steps = (labels[0, -1] - labels[0, 0]).abs().item() / labels.shape[1]
    assert (pixels - labels)[middle].abs().max() <= steps / 2 + 1.5


@quick
@given(size=sizes, seed=seeds)
def test_flipping_twice_changes_nothing(size, seed):
    before = sample(*size)
    assert_same(flip_horizontally(flip_horizontally(before)), before)


@quick
@given(size=sizes, canvas=st.tuples(st.integers(60, 70), st.integers(60, 70)))
def test_flipping_leaves_padding_at_the_right(size, canvas):
    before = pad_right_and_below(sample(*size), canvas)
    flipped = flip_horizontally(before)
    assert flipped.image.valid_hw_px == size
    assert torch.equal(flipped.image.pixels[:, :, size[1] :], before.image.pixels[:, :, size[1] :])
    bare = flip_horizontally(sample(*size))
    assert torch.equal(flipped.image.pixels[:, : size[0], : size[1]], bare.image.pixels)
    assert torch.equal(flipped.targets["objects"].boxes_xyxy_px, bare.targets["objects"].boxes_xyxy_px)
    assert_same(flip_horizontally(flipped), before)


@all_kinds
@given(transform=st.sampled_from(RANDOM), size=sizes, other=sizes, seed=seeds)
def test_equal_generators_give_equal_samples_and_draws_do_not_depend_on_the_picture(
    transform, size, other, seed
):
    first, second, third = rng(seed), rng(seed), rng(seed)
    assert_same(transform(sample(*size), first), transform(sample(*size), second))
    transform(sample(*other), third)
    assert first.random() == second.random() == third.random()


@pytest.mark.parametrize("transform", [*RANDOM, *FIXED, Compose(*RANDOM)], ids=repr)
def test_transforms_survive_pickling(transform):
    again = pickle.loads(pickle.dumps(transform))
    assert repr(again) == repr(transform)
    assert_same(again(sample(30, 40), rng(3)), transform(sample(30, 40), rng(3)))


@pytest.mark.parametrize("transform", RANDOM + FIXED, ids=repr)
def test_floating_point_pictures_pass_too(transform):
    whole = sample(30, 40)
    floats = replace(whole, inputs={"image": Image(whole.image.pixels.float() / 255)})
    after = transform(floats, rng(5))
    assert after.image.pixels.dtype is torch.float32
    as_bytes = transform(whole, rng(5))
    inside = as_bytes.targets["label_map"].pixels != 255
    difference = after.image.pixels * 255 - as_bytes.image.pixels
    assert difference[:, inside].abs().max() <= 1.0
    assert after.image.pixels[:, ~inside].abs().sum() == 0


def test_resizing_equals_pillow_to_rounding():
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    whole = Sample.of_image("one", torch.from_numpy(noise).permute(2, 0, 1))
    for name in ("bilinear", "bicubic"):
        for hw in ((20, 30), (90, 33), (50, 71)):
            found = Resize(hw, interpolation=name)(whole, rng()).image.pixels.permute(1, 2, 0).numpy()
            kind = PillowImage.Resampling[name.upper()]
            expected = np.asarray(PillowImage.fromarray(noise).resize(hw[::-1], kind))
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_resizing_scales_boxes_by_edges():
    objects = Objects(torch.tensor([[0.0, 0.0, 40.0, 30.0], [10.0, 15.0, 20.0, 30.0]]), torch.tensor([0, 1]))
    whole = Sample.of_image("one", coordinates(30, 40), {"objects": objects})
    after = Resize((60, 20))(whole, rng()).targets["objects"]
    assert after.boxes_xyxy_px.tolist() == [[0, 0, 20, 60], [5, 30, 10, 60]]


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        (Resize(20, how="short"), (40, 60), (20, 30)),
        (Resize(20, how="short", longest_px=25), (40, 60), (17, 25)),
        (Resize(100, how="short"), (40, 60), (100, 150)),
        (Resize((20, 50), how="exact"), (40, 60), (20, 50)),
    ],
)
def test_resize_gives_the_size_asked_for(transform, size, expected):
    assert transform(sample(*size), rng()).image.hw_px == expected


def test_fit_pads_at_the_right_and_below_and_says_where_the_picture_ends():
    after = Resize((30, 30), how="fit")(sample(20, 40), rng())
    assert after.image.hw_px == (30, 30) and after.image.valid_hw_px == (15, 30)
    assert (after.targets["label_map"].pixels[15:] == 255).all()
    assert not after.targets["objects"].masks[:, 15:].any()
    again = CenterCrop(10)(after, rng())
    assert again.image.valid_hw_px is None and again.image.hw_px == (10, 10)
    assert (again.targets["label_map"].pixels != 255).all()


def test_objects_without_masks_are_clipped_and_dropped_when_outside():
    objects = Objects(
        torch.tensor([[0.0, 0.0, 5.0, 5.0], [8.0, 8.0, 20.0, 20.0], [30.0, 2.0, 35.0, 4.0]]), torch.arange(3)
    )
    whole = Sample.of_image("one", coordinates(40, 40), {"objects": objects})
    after = crop_and_resize(whole, Window(10, 10, 10, 20), (40, 20)).targets["objects"]
    assert after.labels.tolist() == [1]
    assert after.boxes_xyxy_px.tolist() == [[0, 0, 20, 20]]
    assert after.masks is None


def test_the_box_of_a_cut_object_shrinks_to_what_is_left_of_its_mask():
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 2:4, 2:18] = True
    mask[0, 2:18, 2:4] = True
    whole = sample(20, 20, mask)
    after = crop_and_resize(whole, Window(0, 10, 20, 10), (10, 20)).targets["objects"]
    assert after.boxes_xyxy_px.tolist() == [[2, 0, 4, 8]]


def test_boxes_of_uncut_objects_keep_their_fractions():
    objects = Objects(
        torch.tensor([[2.25, 3.5, 9.75, 8.125]]), torch.tensor([0]), torch.ones(1, 20, 20).bool()
    )
    whole = Sample.of_image("one", coordinates(20, 20), {"objects": objects})
    after = crop_and_resize(whole, Window(1, 2, 12, 10), (20, 24)).targets["objects"]
    assert after.boxes_xyxy_px.tolist() == [[2.5, 3.0, 17.5, 12.25]]


def test_random_resized_crop_keeps_to_its_ranges():
    shares, aspects = [], []
    for seed in range(300):
        window = RandomResizedCrop(8, area=(0.2, 0.5), aspect=(0.5, 2.0))._window(
            400, 300, rng(seed).random(22).tolist()
        )
        assert window.left >= 0 and window.left + window.width <= 300
        assert window.top >= 0 and window.top + window.height <= 400
        shares.append(window.width * window.height / 120_000)
        aspects.append(window.width / window.height)
    assert 0.195 < min(shares) < 0.23 and 0.47 < max(shares) < 0.505
    assert 0.49 < min(aspects) < 0.6 and 1.7 < max(aspects) < 2.02
    assert abs(np.mean(shares) - 0.35) < 0.03 and abs(np.mean(np.log(aspects))) < 0.1


def test_random_resized_crop_falls_back_to_the_middle_of_pictures_no_window_fits():
    window = RandomResizedCrop(8, area=(1.0, 1.0), aspect=(1.0, 1.0))._window(10, 100, [0.5] * 22)
    assert window == Window(45, 0, 10, 10)


def test_random_crop_reaches_every_place():
    crop = RandomCrop(8, padding_px=2)
    lefts = set()
    for seed in range(200):
        pixels = crop(sample(10, 10), rng(seed)).image.pixels
        real = (pixels[2] == 200).any(0)
        lefts.add(int(pixels[0, 4, real][0]) - int(real.int().argmax()))
    assert lefts == set(range(-2, 5))


def test_transforms_keep_pixels_in_rows():
    for transform in (
        Resize(10),
        RandomResizedCrop(10),
        RandomCrop(10),
        CenterCrop(50),
        Resize(50, how="fit"),
    ):
        assert transform(sample(30, 40), rng()).image.pixels.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resize(0),
        lambda: Resize((4, 4), how="short"),
        lambda: Resize(4, longest_px=9),
        lambda: RandomCrop(4, padding_px=-1),
        lambda: RandomResizedCrop(4, area=(0.0, 1.0)),
        lambda: RandomScale(2.0, 1.0),
        lambda: pad_right_and_below(sample(9, 9), (8, 20)),
    ],
)
def test_senseless_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"expected|takes|goes with|must be|does not fit"):
        make()
