"""Rates by place in the module tree, and those of the official code, rule by rule from its names."""

import json
import re
from functools import cache

import pytest
import torch
from torch import nn

from allsight.backbones import Backbone, DepthLayer, InternImage
from allsight.config import ConfigError, build, dump
from allsight.engine.optim import AdamW
from allsight.engine.parameter_groups import DCNRates, Groups, parameter_groups, parameter_table
from allsight.layers import DCNv4
from allsight.models import Classifier, MultiHead

VARIANTS = ("tiny", "small", "base", "large", "xlarge", "huge", "giant")
TENTH = DCNRates(offset=0.1, center_feature_scale=0.1)


def build_classifier(variant: str, **changes) -> Classifier:
    fields = Classifier.Config.variant_fields(variant)
    fields["backbone"] = InternImage.Config.variant(variant, **changes)
    with torch.device("meta"):
        return Classifier(Classifier.Config(**fields))


classifier = cache(build_classifier)
"""Shared by tests that do not change it."""


def table_of(model: nn.Module, **groups):
    return parameter_table(model, AdamW.Config(groups=Groups(**groups)))


def published_rate(name: str, depths: tuple[int, ...], decay: float, dcn: float) -> float:
    """What OpenGVLab/InternImage:classification/optimizer.py does to a parameter of this official name."""
    before = [sum(depths[:i]) for i in range(len(depths))]
    stage_end = re.match(r"levels\.([012])\.(downsample|norm)", name)
    block = re.match(r"levels\.(\d)\.blocks\.(\d+)\.", name)
    if block:
        place = before[int(block[1])] + int(block[2])
    elif name.startswith("patch_embed"):
        place = 0
    elif stage_end:
        place = before[int(stage_end[1]) + 1]
    else:
        place = sum(depths) - 1
    steers = "offset" in name or "center_feature_scale_proj" in name
    return decay ** (sum(depths) - 1 - place) * (dcn if steers else 1.0)


def published_dense_rate(name: str, depths: tuple[int, ...], decay: float) -> float:
    """The same of detection/mmcv_custom/custom_layer_decay_optimizer_constructor.py, for a backbone."""
    before = [1 + sum(depths[:i]) for i in range(len(depths))]
    words = name.split(".")
    layers = sum(depths) + 2
    if words[0] == "patch_embed":
        place = 0
    elif words[2] in ("downsample", "norm"):
        place = before[min(int(words[1]) + 1, len(depths) - 1)]
    else:
        place = before[int(words[1])] + int(words[3])
    return decay ** (layers - 1 - place)


@pytest.mark.parametrize("variant", VARIANTS)
def test_official_rates_and_decay_are_those_of_the_official_names(variant):
    model = classifier(variant)
    depths = model.config.backbone.depths
    table = table_of(model, layer_decay=0.9, dcn_lr_multiplier=TENTH, compat="official")
    names = model.official_names()
    assert len(table.rows) == len(list(model.parameters()))
    for row in table.rows:
        official = names[row.name]
        assert row.lr_scale == pytest.approx(published_rate(official, depths, 0.9, 0.1), rel=1e-9), official
        decays = len(row.shape) > 1 and not official.endswith(".bias")
        assert row.weight_decay == (0.05 if decays else 0.0), official


@pytest.mark.parametrize("variant", VARIANTS)
def test_official_rates_of_dense_networks_are_those_of_the_official_names(variant):
    model = classifier(variant)
    depths = model.config.backbone.depths
    table = table_of(model, layer_decay=0.94, dcn_lr_multiplier=TENTH, compat="official_dense")
    names = model.official_names()
    for row in table.rows:
        inside = row.name.startswith("backbone.")
        expected = published_dense_rate(names[row.name], depths, 0.94) if inside else 1.0
        assert row.lr_scale == pytest.approx(expected, rel=1e-9), names[row.name]


def test_official_rates_of_huge_are_the_known_ones():
    table = table_of(classifier("huge"), layer_decay=0.9, dcn_lr_multiplier=TENTH, compat="official")
    for name, rate in {
        "backbone.stem.conv1.weight": 0.0057,
        "backbone.stages.0.blocks.0.mlp.fc1.weight": 0.0057,
        "backbone.stages.3.blocks.5.mlp.fc2.weight": 1.0,
        "backbone.stages.3.blocks.0.dcn.offset.weight": 0.059,
        "backbone.stages.3.blocks.0.dcn.mask.weight": 0.59,
        "backbone.stages.2.extra_norms.0.weight": 1.0,
        "backbone.stages.2.norm.weight": 0.59,
        "head.weight": 1.0,
    }.items():
        assert table[name].lr_scale == pytest.approx(rate, rel=0.01), name
    gate = table["backbone.stages.3.blocks.0.dcn.center_feature_scale.weight"]
    assert (gate.lr_scale, gate.weight_decay) == (pytest.approx(0.059, rel=0.01), 0.05)
    dense = table_of(classifier("huge"), layer_decay=0.94, compat="official_dense")
    assert dense["backbone.stages.2.extra_norms.4.weight"].lr_scale == pytest.approx(0.122, abs=5e-4)


def test_officially_the_rate_of_offsets_needs_layer_decay():
    table = table_of(classifier("large"), dcn_lr_multiplier=TENTH, compat="official")
    assert {row.lr_scale for row in table.rows} == {1.0}


def test_rates_fall_layer_by_layer_with_norms_beside_their_blocks():
    model = classifier("huge", depths=(1, 2, 7, 1), third_stage_norm_after=(1, 5))
    table = table_of(model, layer_decay=0.5)
    after = {
        "stem.norm2.weight": 11,
        "stages.0.blocks.0.dcn.offset.weight": 10,
        "stages.0.norm.weight": 10,
        "downsamples.0.conv.weight": 9,
        "stages.1.blocks.0.mlp.fc1.bias": 9,
        "stages.1.blocks.1.mlp.fc1.bias": 8,
        "stages.1.norm.bias": 8,
        "downsamples.1.norm.weight": 7,
        "stages.2.blocks.0.norm1.weight": 7,
        "stages.2.extra_norms.0.weight": 6,
        "stages.2.blocks.1.res_norm2.weight": 6,
        "stages.2.extra_norms.1.weight": 2,
        "stages.2.blocks.6.dcn.mask.bias": 1,
        "stages.2.norm.weight": 1,
        "downsamples.2.conv.weight": 0,
        "stages.3.blocks.0.norm1.weight": 0,
        "stages.3.norm.weight": 0,
    }
    for name, layers in after.items():
        assert table[f"backbone.{name}"].lr_scale == 0.5**layers, name
    assert {row.lr_scale for row in table.rows if not row.name.startswith("backbone.")} == {1.0}


@pytest.mark.parametrize("compat", ["none", "official", "official_dense"])
@pytest.mark.parametrize("variant", ["tiny", "large", "giant"])
def test_every_trainable_parameter_is_in_exactly_one_of_few_groups(variant, compat):
    model = build_classifier(variant)
    model.backbone.stem.requires_grad_(False)
    config = AdamW.Config(groups=Groups(layer_decay=0.9, dcn_lr_multiplier=TENTH, compat=compat))
    groups = parameter_groups(model, config)
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters() if p.requires_grad}
    assert len({(g["lr_scale"], g["weight_decay"]) for g in groups}) == len(groups)
    assert len(groups) <= 4 * (sum(model.config.backbone.depths) + 2) < len(found)


def test_without_factors_there_are_two_groups():
    groups = parameter_groups(classifier("huge"), AdamW.Config())
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [(1.0, 0.05), (1.0, 0.0)]


def test_offsets_weights_and_gates_have_factors_of_their_own():
    rates = DCNRates(offset=0.5, mask=0.25, center_feature_scale=0.125)
    table = table_of(classifier("giant"), dcn_lr_multiplier=rates)
    found = {}
    for row in table.rows:
        found.setdefault(row.lr_scale, set()).add(row.name.split(".dcn.")[-1].split(".")[0])
    assert found[0.5] == {"offset"} and found[0.25] == {"mask"} and found[0.125] == {"center_feature_scale"}


def test_a_layer_that_predicts_both_takes_one_factor():
    layer = nn.Sequential(DCNv4(32, 2, dw_kernel_size=3))
    table = table_of(layer, dcn_lr_multiplier=DCNRates(offset=0.1, mask=0.1))
    assert {row.name for row in table.rows if row.lr_scale == 0.1} == {
        "0.offset_mask.weight",
        "0.offset_mask.bias",
        "0.offset_mask_dw.weight",
        "0.offset_mask_dw.bias",
    }
    with pytest.raises(ConfigError, match=r"offset=0\.1 and mask=1 differ, but DCNv4 predicts both"):
        table_of(layer, dcn_lr_multiplier=DCNRates(offset=0.1))


def test_stages_have_factors_of_their_own_and_factors_multiply():
    table = table_of(classifier("tiny"), stage_lr=(0.0625, 0.125, 0.25, 0.5, 1.0))
    for name, rate in {
        "stem.conv1.weight": 0.0625,
        "stages.0.blocks.3.mlp.fc1.weight": 0.125,
        "stages.0.norm.weight": 0.125,
        "downsamples.0.conv.weight": 0.25,
        "stages.2.blocks.17.dcn.offset.weight": 0.5,
        "downsamples.2.norm.bias": 1.0,
    }.items():
        assert table[f"backbone.{name}"].lr_scale == rate, name
    both = table_of(classifier("tiny"), stage_lr=(0.1, 1, 1, 1, 1), layer_decay=0.5)
    assert both["backbone.stem.conv1.weight"].lr_scale == pytest.approx(0.1 * 0.5**30)


def test_a_backbone_with_fewer_stages_counts_those_it_has():
    model = InternImage(InternImage.Config.variant("nano", out_stages=(0, 1)))
    assert table_of(model, stage_lr=(0.5, 1, 2))["stages.1.norm.weight"].lr_scale == 2
    assert table_of(model, layer_decay=0.5)["stem.conv1.weight"].lr_scale == 0.25
    with pytest.raises(ConfigError, match=r"stage_lr: expected 3 numbers \(the stem and 2 stages of InternI"):
        table_of(model, stage_lr=(0.1, 1))


def test_the_heads_of_tasks_and_several_backbones_are_seen():
    class Headed:
        def head(self, features):
            return nn.Linear(features[-1].channels, 2)

        def cast(self, batch):
            raise NotImplementedError

    nano = InternImage.Config.variant("nano")
    model = MultiHead(MultiHead.Config(backbone=nano), {"a": Headed()})
    both = nn.ModuleDict({"one": model, "two": nano.build()})
    table = table_of(both, layer_decay=0.5)
    assert table["one.heads.a.weight"].lr_scale == 1.0
    assert table["one.backbone.stem.conv1.weight"].lr_scale == 0.5**5
    assert table["two.stem.conv1.weight"].lr_scale == 0.5**5


class Bare(Backbone):
    class Config(Backbone.Config):
        pass

    def __init__(self, config):
        super().__init__(config)
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)


class Forgetful(Bare):
    class Config(Bare.Config):
        pass

    def layers_in_order(self, compat="none"):
        return (DepthLayer(0, (self.two,)),)


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="Linear has no backbone with layers"):
        table_of(nn.Linear(2, 2), layer_decay=0.9)
    with pytest.raises(ConfigError, match=r"Bare does not tell its layers.*layers_in_order"):
        table_of(Bare(Bare.Config()), layer_decay=0.9)
    with pytest.raises(ConfigError, match=r"Forgetful\.layers_in_order leaves out one\.weight"):
        table_of(Forgetful(Forgetful.Config()), layer_decay=0.9)
    with pytest.raises(ConfigError, match=r"stage_lr=\(1\.0,\): not with compat=official"):
        Groups(stage_lr=(1.0,), compat="official")
    for wrong in ({"layer_decay": 1.1}, {"layer_decay": 0.0}, {"stage_lr": (0.0, 1.0)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Groups(**wrong)


def test_the_settings_survive_being_written():
    config = AdamW.Config(groups=Groups(layer_decay=0.9, stage_lr=(1, 2), dcn_lr_multiplier=TENTH))
    assert build(AdamW.Config, json.loads(json.dumps(dump(config)))) == config


def test_the_table_can_be_read():
    lines = str(table_of(InternImage(InternImage.Config.variant("nano")), layer_decay=0.5)).splitlines()
    assert lines[0].split() == ["lr", "x", "decay", "tensors", "numbers", "parameters"]
    assert len(lines) == 1 + 2 * 6
    assert lines[1].split()[:3] == ["1", "0.05", "8"] and "stages.3.blocks.0" in lines[1]
    assert lines[-1].split()[0] == "0.03125" and lines[-1].endswith("stem.conv1.bias and 5 more")
