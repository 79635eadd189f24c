"""What a backbone costs, against the modules and the published figures; and the rule that scales it."""

import math
from inspect import unwrap
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from allsight.backbones import InternImage
from allsight.backbones.internimage_scaling import costs, scaled
from allsight.config import ConfigError

VARIANTS = tuple(InternImage.variants)
OPERATORS = (
    {"operator": "conv", "groups": (1, 2, 4, 8)},
    {"operator": "dcnv4", "center_feature_scale": True, "dw_kernel_size": 5, "remove_center": True},
    {"operator": "dcnv4", "output_bias": False, "dw_kernel_size": None, "groups": (1, 1, 1, 1)},
    {"shared_weights": False, "remove_center": True},
)


def built(config):
    with torch.device("meta"):
        return InternImage(config)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [(variant, {}) for variant in VARIANTS]
    + [("micro", {"layer_scale": 1.0, "block_norm": "pre", "out_stages": (1, 2), "stem_stride": 2})]
    + [("micro", changes) for changes in OPERATORS],
)
def test_parameters_of_every_part_are_those_of_the_modules(variant, changes):
    config = InternImage.Config.variant(variant, **changes)
    model = built(config)
    modules = [model.stem]
    for i, stage in enumerate(model.stages):
        modules.append(stage)
        modules += model.downsamples[i : i + 1]
    parts = costs(config)
    assert [part.parameters for part in parts] == [sum(p.numel() for p in m.parameters()) for m in modules]


@pytest.mark.parametrize(
    ("variant", "hw_px", "changes"),
    [
        ("nano", (75, 90), {}),
        ("micro", (64, 64), {"dw_kernel_size": 5, "center_feature_scale": True, "remove_center": True}),
        *(("micro", (32, 48), changes) for changes in OPERATORS),
    ],
)
def test_work_is_that_of_the_modules_and_of_the_operator(variant, hw_px, changes):
    config = InternImage.Config.variant(variant, **changes)
    model = built(config)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, *hw_px, device="meta"))
    # The counter of PyTorch knows convolutions and matrix products; two operations are one of ours.
    sampling = 0
    for part in costs(config, hw_px):
        if part.name.startswith("stage") and config.operator != "conv":
            stage = int(part.name[-1]) - 1
            points = 8 if config.remove_center else 9
            area = part.hw_px[0] * part.hw_px[1]
            sampling += 5 * points * area * config.stage_channels(stage) * config.depths[stage]
    own = sum(part.macs for part in costs(config, hw_px))
    assert counter.get_total_flops() / 2 == pytest.approx(own - sampling, rel=0.001)


@pytest.mark.parametrize(
    ("variant", "side_px", "giga_macs"),
    [
        ("tiny", 224, 4.89),
        ("small", 224, 8.31),
        ("base", 224, 16.2),
        ("large", 384, 107.8),
        ("xlarge", 384, 162.9),
        ("huge", 224, 182.9),
        ("giant", 512, 2711),
    ],
)
def test_work_agrees_with_published_variants(variant, side_px, giga_macs):
    """Counted once over the official modules, heads included, which add less than a hundredth."""
    parts = costs(InternImage.Config.variant(variant), (side_px, side_px))
    assert sum(part.macs for part in parts) / 1e9 == pytest.approx(giga_macs, rel=0.01)


def test_the_rule_of_the_paper_doubles_a_network_with_each_step():
    """Its factors are chosen so that alpha * beta ** 1.99 is about 2; rounding evens out."""
    tiny, small = (InternImage.Config.variant(name) for name in ("tiny", "small"))
    assert scaled(tiny, 0) == tiny
    once = scaled(tiny, 1)
    assert (once.channels, once.depths, once.groups) == (small.channels, small.depths, small.groups)
    sizes = [sum(part.parameters for part in costs(scaled(tiny, phi))) for phi in (0, 3, 6)]
    for smaller, larger in pairwise(sizes):
        assert larger / smaller == pytest.approx(8, rel=0.1)
    built(scaled(tiny, -1.5))


def test_what_is_not_stacked_by_the_rules_cannot_be_scaled():
    with pytest.raises(ConfigError, match=r"scaled: depths: expected \(n, n, m, n\) with n <= m, got"):
        scaled(InternImage.Config.variant("tiny", depths=(4, 5, 18, 4)), 1.0)
    with pytest.raises(ConfigError, match="scaled: groups: expected groups of 16 channels"):
        scaled(InternImage.Config.variant("tiny", groups=(4, 8, 8, 32)), 1.0)


@pytest.mark.parametrize(
    ("phi", "factors", "said"),
    [
        (math.nan, {}, "phi: expected a finite number, got nan"),
        ("x", {}, "phi: expected a finite number, got 'x'"),
        (1e9, {}, r"phi: alpha \*\* 1e\+09 is more than"),
        (10**400, {}, "phi: expected a finite number, got inf"),
        (1, {"beta": math.inf}, "beta: expected a finite number, got inf"),
        (0.5, {"alpha": -1.0}, "alpha: expected a number above 0"),
    ],
)
def test_what_is_no_factor_cannot_scale(phi, factors, said):
    with pytest.raises(ConfigError, match=f"scaled: {said}"):
        unwrap(scaled)(InternImage.Config.variant("tiny"), phi, **factors)
