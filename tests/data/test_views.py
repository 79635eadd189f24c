"""Views of one decode: each knows where it lies, whatever the generator said."""

import numpy as np
import pytest
import torch

from allsight.data.transforms import CentralView, GaussianBlur, Grey, RandomView, Solarise, Sometimes, Views
from allsight.types import Sample


def picture(height=60, width=90):
    """Red says the column, green the row: pixels tell where they come from."""
    columns = torch.linspace(0, 255, width).expand(height, -1)
    rows = torch.linspace(0, 255, height)[:, None].expand(-1, width)
    return Sample.of_image("a", torch.stack([columns, rows, 0 * rows]).to(torch.uint8), {"label": 3})


@pytest.mark.parametrize("seed", range(6))
def test_the_record_says_where_the_pixels_come_from(seed):
    view = RandomView(32, area=(0.2, 0.6), interpolation="bilinear")
    image = view(picture(), np.random.default_rng(seed)).image
    crop = image.crop
    assert image.pixels.shape == (3, 32, 32) and crop.picture_width == 90
    places = (torch.arange(32) + 0.5) / 32
    x = crop.left + crop.width * places
    x = 90 - x if crop.is_flipped else x
    y = crop.top + crop.height * places
    inner = slice(2, 30)
    found_x = image.pixels[0].float().mean(0) / 255 * 89 + 0.5
    found_y = image.pixels[1].float().mean(1) / 255 * 59 + 0.5
    assert (found_x - x)[inner].abs().max() < 0.6
    assert (found_y - y)[inner].abs().max() < 0.6


def test_both_kinds_of_flips_occur():
    view = RandomView(16)
    flips = {view(picture(), np.random.default_rng(seed)).image.crop.is_flipped for seed in range(20)}
    assert flips == {True, False}


def test_the_view_of_evaluation_is_the_middle():
    crop = CentralView(32)(picture(), np.random.default_rng(0)).image.crop
    assert crop.numbers() == (0, 15, 60, 60, 90, 0)


def test_views_are_made_from_one_sample_and_the_first_is_its_image():
    made = Views((RandomView(16), RandomView(24)))(picture(), np.random.default_rng(0))
    assert [view["image"].pixels.shape[-1] for view in made.views] == [16, 24]
    assert made.image is made.views[0]["image"] and made.targets == {"label": 3}
    again = Views((RandomView(16), RandomView(24)))(picture(), np.random.default_rng(0))
    assert torch.equal(made.views[1]["image"].pixels, again.views[1]["image"].pixels)
    assert made.views[0]["image"].crop != made.views[1]["image"].crop


def test_how_much_one_view_draws_moves_no_other():
    looks = (Sometimes(GaussianBlur(), 1.0),)
    plain = Views((RandomView(16), RandomView(16)))(picture(), np.random.default_rng(0))
    blurred = Views((RandomView(16, looks=looks), RandomView(16)))(picture(), np.random.default_rng(0))
    assert torch.equal(plain.views[1]["image"].pixels, blurred.views[1]["image"].pixels)
    assert plain.views[0]["image"].crop == blurred.views[0]["image"].crop


def test_looks_do_what_they_say():
    rng = np.random.default_rng(0)
    grey = Grey()(picture(), rng).image.pixels
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])
    solar = Solarise(100)(picture(), rng).image.pixels
    bright = picture().image.pixels >= 100
    assert torch.equal(solar[bright], 255 - picture().image.pixels[bright])
    assert torch.equal(solar[~bright], picture().image.pixels[~bright])
    noise = Sample.of_image("n", torch.randint(256, (3, 40, 40), dtype=torch.uint8))
    assert GaussianBlur((2, 2))(noise, rng).image.pixels.float().std() < noise.image.pixels.float().std() / 3
    with pytest.raises(ValueError, match="0 <= low <= high"):
        GaussianBlur((2, 1))


def test_a_transform_with_a_chance_is_applied_about_that_often():
    sometimes = Sometimes(Solarise(0), 0.3)
    sample = picture()
    changed = [
        not torch.equal(sometimes(sample, np.random.default_rng(i)).image.pixels, sample.image.pixels)
        for i in range(200)
    ]
    assert 40 < sum(changed) < 80
