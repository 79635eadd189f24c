"""ResNet: published names both ways, maps as announced, what is frozen stays frozen."""

import pytest
import torch

from allsight.backbones import ResNet
from allsight.config import ConfigError
from allsight.layers import DeformConv2d
from allsight.types import CheckpointError

SMALL = dict(block="bottleneck", depths=(1, 1, 1, 1), channels=8)


def small(**changes):
    torch.manual_seed(0)
    return ResNet(ResNet.Config(**{**SMALL, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block": "basic", "out_stages": (1, 2)},
        {"stride_in": "1x1", "deform_stages": (2, 3), "norm": "frozen"},
        {"remat": "block", "frozen_parts": 2},
        {"remat": "selective", "frozen_parts": 2},
    ],
)
def test_maps_are_as_announced_and_gradients_reach_what_learns(changes):
    model = small(**changes).train()
    maps = model(torch.randn(2, 3, 65, 40))
    for x, spec in zip(maps, model.feature_specs, strict=True):
        assert x.shape == (2, spec.channels, -(-65 // spec.stride), -(-40 // spec.stride))
    sum(x.square().sum() for x in maps).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_stride_of_a_bottleneck_is_where_the_style_says():
    for style, strides in (("3x3", (1, 2)), ("1x1", (2, 1))):
        block = small(stride_in=style).layer2[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_frozen_norms_and_stages_do_not_change_in_training():
    model = small(norm="frozen", frozen_parts=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    a, b = model(images), model.eval()(images)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning and not any(
        "bn" in n or n.startswith(("conv1", "layer1", "downsample.1")) for n in learning
    )


def test_published_weights_come_in_and_go_out_in_their_order_of_channels(tmp_path):
    bgr = small(channel_order="bgr", mean=(0.5, 0.4, 0.3))
    published = {f"img_backbone.{k}": v for k, v in bgr.official_state_dict().items()}
    published["img_neck.x"] = torch.zeros(1)
    again = ResNet.from_official(published, bgr.config)
    assert torch.equal(again.conv1.weight, bgr.conv1.weight)
    assert torch.equal(published["img_backbone.conv1.weight"], bgr.conv1.weight.flip(1))
    assert again.load_report.skipped == ("img_neck.x",)
    again.save_official(tmp_path / "r.safetensors")
    third = ResNet.from_official(tmp_path / "r.safetensors", bgr.config)
    images = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(third.eval()(images)[-1], bgr.eval()(images)[-1])


def official_keys(variant, **changes):
    with torch.device("meta"):
        return ResNet(ResNet.Config.variant(variant, **changes)).state_dict()


def test_variants_are_recognised_by_their_weights():
    for variant in ("r18", "r34", "r50", "r101", "r101_caffe_dcn"):
        weights = {k: torch.empty(v.shape) for k, v in official_keys(variant).items() if v.ndim < 2}
        weights |= {k: v for k, v in official_keys(variant).items() if v.ndim >= 2}
        from allsight.backbones.resnet_official import recognise

        assert recognise(weights) == variant


def test_names_and_sizes_of_resnet_50_are_those_of_the_published_detector(parity):
    import json
    import os
    from pathlib import Path

    parity("bevformer/geometry")  # skips without the folder
    about = json.loads((Path(os.environ["ALLSIGHT_PARITY"]) / "bevformer/keys_tiny.json").read_text())
    official = {
        name.removeprefix("img_backbone."): shape
        for name, shape in about["state_dict"].items()
        if name.startswith("img_backbone.")
    }
    own = {name: list(tensor.shape) for name, tensor in official_keys("r50").items()}
    assert own == official


def test_old_names_of_offsets_and_missing_counters_are_understood():
    model = small(deform_stages=(3,))
    assert isinstance(model.layer4[0].conv2, DeformConv2d)
    old = {
        name.replace(".conv2.conv_offset.", ".conv2_offset."): tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    old["fc.weight"] = torch.zeros(3, 3)
    again = ResNet.from_official(old, model.config)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval()(images)[-1], model.eval()(images)[-1])


def test_weights_that_do_not_fit_are_refused():
    state = small().state_dict()
    with pytest.raises(CheckpointError, match="no variant has bottleneck blocks and depths"):
        ResNet.from_official(state)
    del state["layer2.0.conv2.weight"]
    with pytest.raises(CheckpointError, match="1 missing: layer2"):
        ResNet.from_official(state, small().config)
    with pytest.raises(ConfigError, match="needs block='bottleneck'"):
        small(block="basic", deform_stages=(1,))
