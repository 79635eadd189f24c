"""Colour changes, erasing, RandAugment and mixing: what they change, what they leave, and how often."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageOps

from allsight.data.transforms import (
    ColorJitter,
    Mix,
    RandAugment,
    RandomErasing,
    cutmix,
    mixup,
    shear,
    shift,
    soft_label,
    turn,
    warp,
)
from allsight.data.transforms.carry import tight_boxes
from allsight.data.transforms.rand_augment import _OPERATIONS
from allsight.types import Image, LabelMap, Objects, Sample

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(4, 50), st.integers(4, 50))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def smooth(height: int, width: int) -> torch.Tensor:
    """A picture whose red is the column."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y * 3, 255 - x - y), 2).to(torch.uint8).permute(2, 0, 1)


def sample(height: int, width: int, *, label: int = 1) -> Sample:
    """With a rectangle as mask and the column as label map."""
    pixels = smooth(height, width)
    masks = torch.zeros(1, height, width, dtype=torch.bool)
    masks[0, height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = True
    objects = Objects(tight_boxes(masks), torch.tensor([4]), masks)
    targets = {"label": label, "objects": objects, "label_map": LabelMap(pixels[0].clone())}
    return Sample.of_image(f"set/{label}", pixels, targets)


def plain(height: int, width: int, label: int = 1) -> Sample:
    return Sample.of_image(f"set/{label}", smooth(height, width) // (label + 1), {"label": label})


RANDOM = [
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    RandomErasing(0.5),
    RandomErasing(1.0, how="mean"),
    RandAugment(),
    RandAugment(layers=3, magnitude=5.0, probability=1.0),
]


@quick
@given(transform=st.sampled_from(RANDOM), size=sizes, other=sizes, seed=seeds)
def test_they_keep_sizes_and_types_repeat_themselves_and_never_change_their_input(
    transform, size, other, seed
):
    first, second, third = rng(seed), rng(seed), rng(seed)
    before = sample(*size)
    kept = pickle.dumps(before)
    after, again = transform(before, first), transform(before, second)
    transform(sample(*other), third)
    assert pickle.dumps(before) == kept
    assert torch.equal(after.image.pixels, again.image.pixels)
    assert first.random() == second.random() == third.random()
    assert after.image.hw_px == size and after.image.pixels.dtype is torch.uint8
    assert tuple(after.targets["label_map"].pixels.shape) == size
    objects = after.targets["objects"]
    assert torch.equal(objects.boxes_xyxy_px, tight_boxes(objects.masks))


@pytest.mark.parametrize("transform", [*RANDOM, Mix(3)], ids=repr)
def test_they_survive_pickling(transform):
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize("transform", [ColorJitter(), RandAugment(probability=1.0)], ids=repr)
def test_those_that_need_bytes_refuse_floats_with_the_sample(transform):
    floats = Sample.of_image("set/a", torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"'set/a': this transform needs uint8 pixels"):
        transform(floats, rng())


def test_colour_jitter_changes_each_property_within_its_range():
    grey = Sample.of_image("a", torch.full((3, 6, 6), 100, dtype=torch.uint8))
    bright = [int(ColorJitter(0.4, 0.0, 0.0)(grey, rng(s)).image.pixels[0, 0, 0]) for s in range(200)]
    assert 59 <= min(bright) < 65 and 135 < max(bright) <= 140 and abs(np.mean(bright) - 100) < 5
    same = ColorJitter(0.0, 0.9, 0.9, 0.3)(grey, rng(1))
    assert torch.equal(same.image.pixels, grey.image.pixels)
    red = torch.zeros(3, 6, 6, dtype=torch.uint8)
    red[0] = 200
    turned = [
        ColorJitter(0.0, 0.0, 0.0, 0.5)(Sample.of_image("a", red), rng(s)).image.pixels[:, 0, 0]
        for s in range(50)
    ]
    assert all(int(colour.max()) == 200 and int(colour.min()) <= 2 for colour in turned)
    assert {int(colour.argmax()) for colour in turned} == {0, 1, 2}


def test_colour_jitter_leaves_annotations_alone():
    before = sample(20, 30)
    after = ColorJitter()(before, rng())
    assert after.targets["objects"] is before.targets["objects"]
    assert not torch.equal(after.image.pixels, before.image.pixels)


def test_erasing_covers_the_asked_share_as_often_as_asked():
    before = Sample.of_image("a", torch.zeros(3, 60, 80, dtype=torch.uint8))
    shares = [
        float((RandomErasing(0.5)(before, rng(s)).image.pixels != 0).any(0).float().mean())
        for s in range(400)
    ]
    erased = [share for share in shares if share > 0]
    assert 150 < len(erased) < 250
    assert min(erased) > 0.018 and max(erased) < 0.34 and abs(np.mean(erased) - 0.177) < 0.02


def test_erasing_fills_with_noise_of_the_pictures_statistics_or_their_mean():
    before = Sample.of_image("a", torch.zeros(3, 200, 200, dtype=torch.uint8))
    noise = RandomErasing(1.0, area=(0.3, 0.3))(before, rng()).image.pixels
    values = noise[:, (noise != 0).any(0)].float()
    torch.testing.assert_close(values.mean(1), torch.tensor([124.0, 117, 104]), rtol=0, atol=2.5)
    mean = RandomErasing(1.0, how="mean")(before, rng()).image.pixels
    assert mean.flatten(1).amax(1).tolist() == [124, 116, 104]
    floats = Sample.of_image("a", torch.full((3, 200, 200), 9.0))
    values = RandomErasing(1.0, area=(0.3, 0.3))(floats, rng()).image.pixels
    values = values[values != 9]
    assert abs(float(values.mean())) < 0.02 and abs(float(values.std()) - 1) < 0.02


@pytest.mark.parametrize(
    ("matrix", "pillow"),
    [
        (
            turn(17.0, 40, 60),
            lambda picture: picture.rotate(17, PillowImage.Resampling.BILINEAR, fillcolor=(9, 8, 7)),
        ),
        (shift(5.0, -3.0), None),
        (shear(x=0.2), None),
        (shear(y=-0.1), None),
    ],
)
def test_warping_moves_picture_label_map_mask_and_box_together(matrix, pillow):
    before = sample(40, 60)
    after = warp(before, matrix, fill=(9, 8, 7))
    if pillow is not None:
        expected = pillow(PillowImage.fromarray(before.image.pixels.permute(1, 2, 0).numpy()))
        np.testing.assert_array_equal(after.image.pixels.permute(1, 2, 0).numpy(), np.asarray(expected))
    labels = after.targets["label_map"].pixels
    inside = labels != 255
    assert inside.float().mean() > 0.5
    assert (after.image.pixels[0].int() - labels.int())[inside].abs().max() <= 1
    assert (after.image.pixels[:, ~inside] == torch.tensor([9, 8, 7], dtype=torch.uint8)[:, None]).all()
    # The mask still covers the columns it covered before.
    covered = labels[after.targets["objects"].masks[0]]
    assert covered.min() >= 15 and covered.max() <= 30


def test_warping_boxes_without_masks_keeps_their_corners_inside():
    before = sample(40, 60)
    bare = replace(before.targets["objects"], masks=None)
    whole = replace(before, targets={"objects": bare})
    for matrix in (turn(20.0, 40, 60), shear(x=0.3), shift(-6.0, 4.0)):
        box = warp(whole, matrix).targets["objects"].boxes_xyxy_px[0]
        tight = warp(before, matrix).targets["objects"].boxes_xyxy_px[0]
        assert (box[:2] <= tight[:2] + 1).all() and (box[2:] >= tight[2:] - 1).all()
        assert (box - tight).abs().max() < 6


def test_objects_moved_out_of_the_picture_are_dropped():
    before = sample(40, 60)
    assert len(warp(before, shift(50.0, 0.0)).targets["objects"]) == 0
    bare = replace(before, targets={"objects": replace(before.targets["objects"], masks=None)})
    assert len(warp(bare, shift(50.0, 0.0)).targets["objects"]) == 0


def test_rand_augment_reads_timms_notation():
    assert RandAugment.parse("rand-m9-mstd0.5-inc1") == RandAugment()
    assert RandAugment.parse("rand-m7-n3-p0.8-inc1") == RandAugment(3, 7.0, 0.0, 0.8)
    for wrong in ("rand-m9", "rand-m9-inc0", "augmix-m3-inc1", "rand-m9-w0-inc1"):
        with pytest.raises(ValueError, match=wrong):
            RandAugment.parse(wrong)


@pytest.mark.parametrize("strength", [0.0, 0.45, 0.9, 1.0])
def test_rand_augment_operations_do_what_their_references_do(strength):
    noise = np.random.default_rng(0).integers(30, 220, (20, 24, 3)).astype(np.uint8)
    picture = PillowImage.fromarray(noise)
    before = Sample.of_image("a", torch.from_numpy(noise).permute(2, 0, 1))
    bits = 4 - int(4 * strength)
    threshold = 256 - min(256, int(256 * strength))
    expected = {
        0: ImageOps.autocontrast(picture),
        1: ImageOps.equalize(picture),
        2: ImageOps.invert(picture),
        4: PillowImage.fromarray(noise & (0xFF << (8 - bits) & 0xFF)),
        5: PillowImage.fromarray(np.where(noise < threshold, noise, 255 - noise)),
        6: PillowImage.fromarray(
            np.where(
                noise < 128, np.minimum(255, noise.astype(int) + min(128, int(110 * strength))), noise
            ).astype(np.uint8)
        ),
    }
    for number, picture_after in expected.items():
        after = (
            _OPERATIONS[number](before, strength, 1.0, RandAugment()).image.pixels.permute(1, 2, 0).numpy()
        )
        np.testing.assert_array_equal(after, np.asarray(picture_after), err_msg=str(number))
    # Brightness, the one enhancement whose result is a plain product.
    bright = _OPERATIONS[9](before, strength, -1.0, RandAugment()).image.pixels.permute(1, 2, 0).numpy()
    assert np.abs(bright - noise * max(0.1, 1 - 0.9 * strength)).max() <= 1


def test_rand_augment_draws_every_operation_and_changes_as_often_as_asked():
    before = sample(24, 24)
    changed = sum(
        not torch.equal(RandAugment(layers=1)(before, rng(s)).image.pixels, before.image.pixels)
        for s in range(300)
    )
    assert 110 < changed < 175
    seen = {int(rng(s).random((1, 3))[0, 0] * len(_OPERATIONS)) for s in range(300)}
    assert len(_OPERATIONS) == 15 and seen == set(range(15))


def test_mixup_averages_each_picture_with_the_next():
    group = [plain(8, 10, label) for label in (0, 1, 2)]
    mixed = mixup(group, rng(3), num_classes=4)
    for own, other, result in zip(group, [*group[1:], group[0]], mixed, strict=True):
        label = result.targets["label"]
        share = float(label[own.targets["label"]])
        assert label.sum() == pytest.approx(1) and label[other.targets["label"]] == pytest.approx(1 - share)
        expected = own.image.pixels * share + other.image.pixels * (1 - share)
        assert (result.image.pixels - expected).abs().max() <= 0.51
        assert result.image.pixels.dtype is torch.uint8 and result.id == own.id
    assert 0 < share < 1


def test_cutmix_pastes_one_rectangle_and_counts_its_area():
    group = [
        replace(
            s, targets={**s.targets, "label_map": LabelMap(torch.full((40, 30), s.targets["label"]).byte())}
        )
        for s in (plain(40, 30, 0), plain(40, 30, 1))
    ]
    shares = []
    for seed in range(30):
        first, second = cutmix(group, rng(seed), num_classes=2)
        pasted = first.targets["label_map"].pixels == 1
        assert torch.equal(first.image.pixels[:, pasted], group[1].image.pixels[:, pasted])
        assert torch.equal(first.image.pixels[:, ~pasted], group[0].image.pixels[:, ~pasted])
        assert torch.equal(second.targets["label_map"].pixels == 0, pasted)
        share = float(pasted.float().mean())
        shares.append(share)
        torch.testing.assert_close(first.targets["label"], torch.tensor([1 - share, share]))
    assert min(shares) < 0.1 and max(shares) > 0.6


@pytest.mark.parametrize("function", [mixup, cutmix])
def test_mixing_repeats_itself_and_leaves_its_input(function):
    group = [plain(8, 8, 0), plain(8, 8, 1)]
    kept = pickle.dumps(group)
    one, two = (function(group, rng(5), num_classes=2) for _ in range(2))
    assert pickle.dumps(group) == kept
    assert all(torch.equal(a.image.pixels, b.image.pixels) for a, b in zip(one, two, strict=True))


def test_mix_takes_mixup_or_cutmix_or_neither_and_labels_are_always_soft():
    group = [plain(20, 20, 0), plain(20, 20, 1)]
    kinds = {"same": 0, "cut": 0, "mixed": 0}
    for seed in range(200):
        result = Mix(2, probability=0.8)(group, rng(seed))[0]
        assert result.targets["label"].shape == (2,)
        pixels = result.image.pixels
        own, other = (pixels == group[k].image.pixels for k in (0, 1))
        kind = "same" if bool(own.all()) else "cut" if bool((own | other).all()) else "mixed"
        kinds[kind] += 1
    assert 20 < kinds["same"] < 80 and kinds["cut"] > 50 and kinds["mixed"] > 50
    assert Mix(2, mixup_alpha=0.0, cutmix_alpha=0.0)(group, rng())[0].targets["label"].tolist() == [1, 0]


def test_what_cannot_be_mixed_is_refused_with_the_sample():
    with pytest.raises(ValueError, match=r"'set/1': target 'objects' \(Objects\) cannot be mixed"):
        mixup([sample(8, 8), sample(8, 8)], rng(), num_classes=3)
    with pytest.raises(ValueError, match="expected one size"):
        cutmix([plain(8, 8), plain(8, 9)], rng(), num_classes=3)
    with pytest.raises(ValueError, match=r"'set/5': label 5 is none of 3 classes"):
        mixup([plain(8, 8, 5)], rng(), num_classes=3)
    assert soft_label(
        Sample.of_image("a", smooth(2, 2), {"label": torch.tensor([0.5, 0.5])}), 2
    ).tolist() == [0.5, 0.5]


def test_padding_is_not_erased():
    whole = Sample("a", {"image": Image(torch.zeros(3, 30, 30, dtype=torch.uint8), valid_hw_px=(10, 30))})
    for seed in range(20):
        assert not RandomErasing(1.0)(whole, rng(seed)).image.pixels[:, 10:].any()
