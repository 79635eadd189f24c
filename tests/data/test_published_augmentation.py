"""RandAugment, erasing, mixup and CutMix draw from the published distributions; seeds are fixed.

The conventions are those of huggingface/pytorch-image-models:timm/data for `rand-m9-mstd0.5-inc1`, erasing in
mode `pixel`, and mixing in mode `batch`. Expected moments are worked out here, not taken from a run.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from PIL import ImageEnhance

from allsight.data.transforms import Mix, RandAugment, RandomErasing, cutmix, mixup
from allsight.data.transforms import rand_augment as module
from allsight.types import Sample

NAMES = (
    "auto_contrast",
    "equalise",
    "invert",
    "rotate",
    "posterise",
    "solarise",
    "solarise_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def close(values, mean: float, deviation: float, sigmas: float = 4.0) -> bool:
    """Whether the mean of draws is as expected of so many draws with this standard deviation."""
    return abs(float(np.mean(values)) - mean) < sigmas * deviation / math.sqrt(len(values))


@pytest.fixture
def drawn(monkeypatch):
    """4000 pictures' draws of the published setting: lists of (operation, strength, sign)."""
    found: list[list[tuple[int, float, float]]] = []

    def recorder(number):
        def record(sample, strength, sign, settings):
            found[-1].append((number, strength, sign))
            return sample

        return record

    monkeypatch.setattr(module, "_OPERATIONS", tuple(recorder(k) for k in range(len(NAMES))))
    augment, picture = RandAugment.parse("rand-m9-mstd0.5-inc1"), Sample.of_image("a", torch.zeros(3, 1, 1))
    for seed in range(4000):
        found.append([])
        augment(picture, rng(seed))
    return found


def test_rand_augment_applies_each_of_two_layers_by_a_coin_and_draws_operations_evenly(drawn):
    counts = np.bincount([len(applied) for applied in drawn], minlength=3) / len(drawn)
    np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.03)
    operations = np.bincount([which for applied in drawn for which, _, _ in applied], minlength=15)
    expected = operations.sum() / 15
    # 99.9 % of the chi-squared distribution with 14 degrees of freedom lies below 36.1.
    assert ((operations - expected) ** 2 / expected).sum() < 36.1
    pairs = [applied[0][0] == applied[1][0] for applied in drawn if len(applied) == 2]
    assert close(pairs, 1 / 15, math.sqrt(14) / 15)


def test_rand_augment_draws_magnitudes_around_nine_cut_at_ten_and_signs_by_a_coin(drawn):
    strengths = np.array([strength for applied in drawn for _, strength, _ in applied])
    above = 0.5 * math.erfc(2 / math.sqrt(2))
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    mean = 0.9 - 0.05 * (density - 2 * above)
    assert close(strengths, mean, 0.05) and strengths.max() == 1.0
    assert close(strengths == 1.0, above, math.sqrt(above))
    assert abs(strengths.std() - 0.0493) < 0.002
    below = np.sort(strengths[strengths < 1.0])
    assert abs(np.quantile(strengths, 0.1587) - 0.85) < 0.003 and below[0] > 0.65
    signs = [sign for applied in drawn for _, _, sign in applied]
    assert set(signs) == {-1.0, 1.0} and close(signs, 0.0, 1.0)


@pytest.mark.parametrize("strength", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_operations_with_a_sign_are_pillows(strength, sign, interpolation):
    noise = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    picture, fill = PillowImage.fromarray(noise), (124, 116, 104)
    how = PillowImage.Resampling[interpolation.upper()]
    amount, factor = sign * strength, max(0.1, 1 + sign * 0.9 * strength)

    def move(*matrix):
        return picture.transform(picture.size, PillowImage.Transform.AFFINE, matrix, how, fillcolor=fill)

    expected = {
        "rotate": picture.rotate(30 * amount, how, fillcolor=fill),
        "colour": ImageEnhance.Color(picture).enhance(factor),
        "contrast": ImageEnhance.Contrast(picture).enhance(factor),
        "brightness": ImageEnhance.Brightness(picture).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(picture).enhance(factor),
        "shear_x": move(1, 0.3 * amount, 0, 0, 1, 0),
        "shear_y": move(1, 0, 0, 0.3 * amount, 1, 0),
        "translate_x": move(1, 0, 0.45 * amount * 30, 0, 1, 0),
        "translate_y": move(1, 0, 0, 0, 1, 0.45 * amount * 20),
    }
    sample = Sample.of_image("a", torch.from_numpy(noise).permute(2, 0, 1))
    for name, wanted in expected.items():
        operation = module._OPERATIONS[NAMES.index(name)]
        after = operation(sample, strength, sign, RandAugment(interpolation=interpolation))
        got = after.image.pixels.permute(1, 2, 0).numpy()
        # Turning computes its matrix in another order; a pixel may fall on the other side of a rounding.
        differing = np.abs(got.astype(int) - np.asarray(wanted)).max(2) > 0
        assert differing.mean() < (0.01 if name == "rotate" else 1e-9), name


def test_at_full_strength_posterise_leaves_nothing():
    sample = Sample.of_image("a", torch.full((3, 4, 4), 200, dtype=torch.uint8))
    operation = module._OPERATIONS[NAMES.index("posterise")]
    levels = [int(operation(sample, s, 1.0, RandAugment()).image.pixels.max()) for s in (0.5, 0.9, 1.0)]
    assert levels == [192, 128, 0]


def test_erased_rectangles_have_the_published_share_aspect_and_place():
    grey, side, pictures = torch.full((3, 64, 64), 9.0), 64, 1000
    shares, aspects, tops, lefts = [], [], [], []
    for seed in range(pictures):
        pixels = RandomErasing(0.25)(Sample.of_image("a", grey), rng(seed)).image.pixels
        rows, columns = (pixels != 9).any(0).any(1).nonzero(), (pixels != 9).any(0).any(0).nonzero()
        if len(rows):
            height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            shares.append(height * width / side**2)
            aspects.append(math.log(height / width))
            tops.append(float(rows[0]) / (side - height))
            lefts.append(float(columns[0]) / (side - width))
    deviation = (1 / 3 - 0.02) / math.sqrt(12)
    reach = math.log(1 / 0.3)
    assert close([k < len(shares) for k in range(pictures)], 0.25, math.sqrt(0.25 * 0.75))
    assert close(shares, (0.02 + 1 / 3) / 2, deviation) and abs(np.std(shares) - deviation) < 0.01
    assert 0.018 < min(shares) < 0.03 and 0.32 < max(shares) < 0.345
    assert close(aspects, 0.0, reach / math.sqrt(3)) and abs(np.std(aspects) - reach / math.sqrt(3)) < 0.08
    for places in (tops, lefts):
        assert close(places, 0.5, 1 / math.sqrt(12)) and abs(np.std(places) - 1 / math.sqrt(12)) < 0.03


def test_noise_in_bytes_is_normal_noise_cut_at_black_and_white():
    black = Sample.of_image("a", torch.zeros(3, 300, 300, dtype=torch.uint8))
    pixels = RandomErasing(1.0, area=(0.33, 0.33), aspect=(1.0, 1.0))(black, rng(0)).image.pixels
    hit = (pixels != 0).any(0)
    rows, columns = hit.any(1).nonzero().flatten(), hit.any(0).nonzero().flatten()
    inside = pixels[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float().flatten(1)
    for values, mean, std in zip(inside, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), strict=True):
        z = (values - mean) / std
        draws = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).clamp(
            -mean / std, (255 - mean) / std
        )
        assert abs(float(z.mean() - draws.mean())) < 0.02
        assert abs(float(z.std() - draws.std())) < 0.02 and 0.95 < float(z.std()) < 1.0


def pair(size: int = 32) -> list[Sample]:
    return [Sample.of_image(str(k), torch.full((3, size, size), 255.0 * k), {"label": k}) for k in (0, 1)]


def share_of_own(mixed: list[Sample]) -> float:
    return float(mixed[0].targets["label"][0])


def test_mixup_shares_are_beta_and_both_of_a_pair_have_the_same():
    shares = []
    for seed in range(600):
        mixed = mixup(pair(1), rng(seed), num_classes=2, alpha=0.8)
        shares.append(share_of_own(mixed))
        assert float(mixed[1].targets["label"][1]) == pytest.approx(shares[-1])
    deviation = math.sqrt(0.25 / (2 * 0.8 + 1))
    assert close(shares, 0.5, deviation) and abs(np.std(shares) - deviation) < 0.02


def expected_cutmix_share(side: int) -> tuple[float, float]:
    """Mean and deviation of the share that stays, over even shares and all middles of the rectangle."""
    middles = np.arange(side)
    kept = []
    for share in (np.arange(400) + 0.5) / 400:
        half = int(side * math.sqrt(1 - share)) // 2
        length = np.clip(middles + half, 0, side) - np.clip(middles - half, 0, side)
        kept.append(1 - np.outer(length, length) / side**2)
    return float(np.mean(kept)), float(np.std(kept))


def test_cutmix_shares_are_those_of_the_rectangle_that_is_left():
    shares = [share_of_own(cutmix(pair(), rng(seed), num_classes=2, alpha=1.0)) for seed in range(600)]
    mean, deviation = expected_cutmix_share(32)
    assert close(shares, mean, deviation) and abs(np.std(shares) - deviation) < 0.02


def test_each_group_is_mixed_by_one_of_both_with_equal_chance():
    cut = []
    for seed in range(500):
        mixed = Mix(2)(pair(), rng(seed))
        values = mixed[0].image.pixels.unique().tolist()
        cut.append(set(values) <= {0.0, 255.0})
    assert close(cut, 0.5, 0.5)
