"""Colours changed by the compiled kernel: PyTorch's bytes on every instruction set, those of the formula."""

import colorsys

import numpy as np
import pytest
import torch

from allsight.ops import _native
from allsight.ops.recolour import Recolouring, _by_torch, recolour

compiled = pytest.mark.skipif(_native.unusable() is not None, reason=str(_native.unusable()))


def picture(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0] = pixels[0, :, :1]  # greys, whose hue is nowhere
    pixels[-1, -1] = 0
    return torch.from_numpy(pixels)


def changes(count):
    rng = np.random.default_rng(count)
    for _ in range(count):
        draws = 2 * rng.random(4) - 1
        yield Recolouring(
            brightness=300 * draws[0],
            contrast=1 + draws[1],
            hue_deg=180 * draws[2],
            saturation=1 + draws[3],
            contrast_first=bool(rng.random() < 0.5),
            order=tuple(rng.permutation(3).tolist()),
        )


EXTREMES = [
    Recolouring(),
    Recolouring(hue_deg=180),
    Recolouring(hue_deg=-180),
    Recolouring(saturation=0),
    Recolouring(saturation=2, contrast=2, brightness=255),
    Recolouring(contrast=0),
    Recolouring(brightness=-255),
]


@compiled
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (2, 8), (13, 17)])
def test_bytes_are_pytorchs_on_every_instruction_set(instruction_set, size):
    pixels = picture(*size)
    for change in [*EXTREMES, *changes(30)]:
        kept = pixels.clone()
        found = recolour(pixels.permute(2, 0, 1), change)
        assert torch.equal(found.permute(1, 2, 0), _by_torch(pixels, change)), change
        assert torch.equal(pixels, kept)


def test_hue_and_saturation_are_those_of_hsv():
    pixels = picture(19, 23)
    found = recolour(pixels.permute(2, 0, 1), Recolouring(hue_deg=77, saturation=1.4)).permute(1, 2, 0)
    expected = []
    for colour in pixels.reshape(-1, 3).numpy() / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb((hue + 77 / 360) % 1, min(saturation * 1.4, 1), value))
    assert np.abs(np.array(expected) * 255 - found.reshape(-1, 3).numpy()).max() < 0.55


def test_changes_come_in_their_order():
    pixels = torch.tensor([100, 200, 50], dtype=torch.uint8)[:, None, None]
    cut_first = recolour(pixels, Recolouring(brightness=100, contrast=0.5, order=(2, 0, 1)))
    assert cut_first.flatten().tolist() == [75, 100, 128]  # 300 is cut to 255 before it is halved
    assert recolour(pixels, Recolouring(contrast=1.5)).flatten().tolist() == [150, 255, 75]
    grey_then_dark = Recolouring(saturation=0, contrast=0.5, contrast_first=False)
    assert recolour(pixels, grey_then_dark).flatten().tolist() == [100, 100, 100]


def test_nothing_changes_where_nothing_is_changed():
    pixels = picture(6, 7).permute(2, 0, 1)
    assert torch.equal(recolour(pixels, Recolouring()), pixels)
    assert recolour(torch.zeros(3, 0, 4, dtype=torch.uint8), Recolouring()).shape == (3, 0, 4)


@pytest.mark.parametrize(
    "wrong", [{"contrast": -1}, {"saturation": 3}, {"hue_deg": 181}, {"order": (0, 0, 1)}]
)
def test_impossible_changes_are_refused(wrong):
    with pytest.raises(ValueError, match="Recolouring: expected"):
        Recolouring(**wrong)
