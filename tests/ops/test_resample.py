"""Pictures resized by the compiled kernel: the numbers of the formula, on every instruction set."""

import numpy as np
import pytest
import torch
from PIL import Image

from allsight.ops import _native
from allsight.ops.resample import _by_torch, resample_window

compiled = pytest.mark.skipif(_native.unusable() is not None, reason=str(_native.unusable()))


def weights(size, new_size):
    """Whole numbers of 2^-14: row i says how much of each old pixel the new pixel i is."""
    scale = size / new_size
    reach = max(scale, 1.0)
    table = np.zeros((new_size, size), dtype=np.int64)
    for i in range(new_size):
        middle = scale * (i + 0.5)
        begin, end = max(0, int(middle - reach + 0.5)), min(size, int(middle + reach + 0.5))
        exact = np.maximum(1 - np.abs(np.arange(begin, end) - middle + 0.5) / reach, 0)
        sums = np.floor(np.cumsum(exact / exact.sum()) * 2**14 + 0.5).astype(np.int64)
        sums[-1] = 2**14
        table[i, begin:end] = np.diff(sums, prepend=0)
    return table


def expected(pixels, hw_px):
    """Down first, then across, rounded to bytes after each."""
    down, across = (weights(pixels.shape[axis], hw_px[axis]) for axis in (0, 1))

    def rounded(sums):
        return np.clip((sums + 2**13) >> 14, 0, 255)

    rows = rounded(np.einsum("yh,hwc->ywc", down, pixels.astype(np.int64)))
    return rounded(np.einsum("xw,ywc->yxc", across, rows)).astype(np.uint8)


SIZES = [
    ((1, 1), (4, 4)),
    ((3, 2), (9, 1)),
    ((20, 11), (7, 8)),
    ((20, 12), (7, 9)),
    ((33, 300), (2, 5)),
    ((61, 75), (224, 25)),
    ((375, 40), (3, 41)),
    ((16, 16), (16, 16)),
]


@compiled
@pytest.mark.parametrize(("hw", "new_hw"), SIZES)
def test_a_window_is_resized_to_the_bytes_of_the_formula(instruction_set, hw, new_hw):
    rng = np.random.default_rng(sum(hw))
    canvas = rng.integers(0, 256, (hw[0] + 3, hw[1] + 5, 3), dtype=np.uint8)
    window = (1, 2, *hw)
    found = resample_window(torch.from_numpy(canvas).permute(2, 0, 1), window, new_hw)
    inside = canvas[1 : 1 + hw[0], 2 : 2 + hw[1]]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected(inside, new_hw))
    mirrored = resample_window(torch.from_numpy(canvas).permute(2, 0, 1), window, new_hw, mirrored=True)
    assert np.array_equal(mirrored.numpy(), found.numpy()[:, :, ::-1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_smooth_picture_comes_out_as_from_pillow_and_pytorch(interpolation):
    y, x = np.mgrid[0:90, 0:120]
    waves = [127 + 100 * np.sin(x / 9 + k) * np.cos(y / 7 - k) for k in range(3)]
    picture = np.stack(waves, -1).astype(np.uint8)
    found = resample_window(
        torch.from_numpy(picture).permute(2, 0, 1), (0, 0, 90, 120), (50, 40), interpolation=interpolation
    )
    kind = getattr(Image.Resampling, interpolation.upper())
    others = (
        np.asarray(Image.fromarray(picture).resize((40, 50), kind)),
        _by_torch(torch.from_numpy(picture), (50, 40), interpolation).permute(1, 2, 0).numpy(),
    )
    for other in others:
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - other).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_mirrored_result_is_the_mirror_image_in_the_same_memory_order(interpolation):
    pixels = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, mirrored = (
        resample_window(pixels, (2, 3, 20, 30), (9, 11), interpolation=interpolation, mirrored=is_mirrored)
        for is_mirrored in (False, True)
    )
    assert torch.equal(mirrored, plain.flip(-1)) and mirrored.stride() == plain.stride() == (1, 33, 3)


def test_any_memory_order_gives_the_same_picture():
    pixels = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows_first = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    window = (2, 3, 20, 30)
    assert torch.equal(resample_window(pixels, window, (9, 9)), resample_window(rows_first, window, (9, 9)))


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 11, 5), (0, 8, 5, 5), (0, 0, 0, 5)])
def test_a_window_that_is_not_in_the_picture_is_refused(window):
    with pytest.raises(ValueError, match="window"):
        resample_window(torch.zeros(3, 10, 10, dtype=torch.uint8), window, (4, 4))
