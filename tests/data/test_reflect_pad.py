"""Crops that reach over an edge see the picture mirrored."""

import numpy as np
import pytest
import torch

from allsight.data.transforms import Compose, RandomCrop, ReflectPad
from allsight.types import DataError, LabelMap, Sample


def test_the_border_mirrors_the_picture():
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    padded = ReflectPad(2)(Sample.of_image("a", pixels), np.random.default_rng(0)).image.pixels
    assert padded.shape == (3, 8, 9)
    assert torch.equal(padded[:, 2:6, 2:7], pixels)
    assert torch.equal(padded[:, 2:6, 1], pixels[:, :, 1]) and torch.equal(padded[:, 2:6, 0], pixels[:, :, 2])
    assert torch.equal(padded[:, 7, 2:7], pixels[:, 1, :])


def test_a_crop_of_the_padded_picture_shows_each_shift():
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    crop, rng = Compose(ReflectPad(2), RandomCrop(8)), np.random.default_rng(0)
    seen = {
        bytes(crop(Sample.of_image("a", pixels), rng).image.pixels.contiguous().numpy()) for _ in range(600)
    }
    assert len(seen) == 25


def test_annotations_cannot_be_mirrored():
    labels = LabelMap(torch.zeros(4, 4, dtype=torch.uint8))
    sample = Sample.of_image("a", torch.zeros(3, 4, 4, dtype=torch.uint8), {"label_map": labels})
    with pytest.raises(DataError, match="a: ReflectPad cannot carry 'label_map'; use RandomCrop"):
        ReflectPad(1)(sample, np.random.default_rng(0))
