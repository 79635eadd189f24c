"""The feature pyramid."""

import pytest
import torch
import torch.nn.functional as F

from allsight.layers import FPN


def maps_of(channels=(4, 6, 8), size=(13, 9)):
    return [torch.randn(2, c, -(-size[0] // 2**i), -(-size[1] // 2**i)) for i, c in enumerate(channels)]


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_levels_halve_whatever_number_is_asked(levels):
    torch.manual_seed(0)
    results = FPN((4, 6, 8), 5, levels=levels)(maps_of())
    assert [tuple(x.shape) for x in results] == [(2, 5, -(-13 // 2**i), -(-9 // 2**i)) for i in range(levels)]


def test_coarse_maps_are_added_to_finer_ones_and_extra_levels_come_last():
    torch.manual_seed(0)
    fpn = FPN((4, 6), 5, levels=4)
    fine, coarse = maps_of((4, 6))
    results = fpn((fine, coarse))
    top = fpn.lateral[1](coarse)
    merged = fpn.lateral[0](fine) + F.interpolate(top, size=fine.shape[2:], mode="nearest")
    assert torch.allclose(results[0], fpn.output[0](merged))
    assert torch.allclose(results[1], fpn.output[1](top))
    assert torch.allclose(results[2], fpn.output[2](results[1]))
    assert torch.allclose(results[3], fpn.output[3](F.relu(results[2])))


def test_no_maps_are_refused():
    with pytest.raises(ValueError, match="expected maps"):
        FPN((), 4, levels=1)
