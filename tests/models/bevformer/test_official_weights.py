"""Published weights come in and go out by their names; what does not fit is named."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch

from allsight.models import BEVFormer, model_for_tasks, num_parameters
from allsight.models.bevformer import DetectionHead, official
from allsight.types import CheckpointError

COUNTS = {"tiny": 33_521_157, "small": 59_463_619, "base": 69_034_947}


def on_meta(variant):
    with torch.device("meta"):
        return BEVFormer(BEVFormer.Config.variant(variant, **compat(variant)))


def compat(variant):
    network = BEVFormer.Config.variant(variant).network
    return {"network": type(network)(**{**dict(network), "compat": "official", "max_gap_s": None})}


@pytest.mark.parametrize("variant", COUNTS)
def test_published_sizes_have_the_published_number_of_parameters(variant):
    assert num_parameters(on_meta(variant)) == COUNTS[variant]


def test_names_and_shapes_of_tiny_are_exactly_the_published_ones(parity):
    parity("bevformer/geometry")  # skips without the folder
    about = json.loads((Path(os.environ["ALLSIGHT_PARITY"]) / "bevformer/keys_tiny.json").read_text())
    model = on_meta("tiny")
    own = {name: list(tensor.shape) for name, tensor in model.official_state_dict().items()}
    assert own == about["state_dict"]
    assert num_parameters(model, trainable=True) == about["parameter_count_requires_grad"]


@pytest.mark.parametrize("variant", ["small", "base"])
def test_names_of_small_and_base_follow_the_rules(variant):
    state = on_meta(variant).official_state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["img_backbone.layer3.22.conv2.conv_offset.weight"] == (27, 256, 3, 3)
    assert shapes["img_backbone.layer4.0.conv2.weight"] == (512, 512, 3, 3)
    levels = {"small": 1, "base": 4}[variant]
    assert shapes["pts_bbox_head.transformer.level_embeds"] == (4, 256)
    inner = "pts_bbox_head.transformer.encoder.layers.0.attentions.1.deformable_attention."
    assert shapes[inner + "sampling_offsets.weight"] == (128 * levels, 256)
    assert shapes[inner + "attention_weights.weight"] == (64 * levels, 256)
    laterals = sorted(name for name in shapes if "lateral" in name and name.endswith("weight"))
    widths = [shapes[name][1] for name in laterals]
    assert widths == {"small": [2048], "base": [512, 1024, 2048]}[variant]
    assert len([name for name in shapes if "fpn_convs" in name]) == 2 * levels


@cache
def tiny_weights():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.02
        if tensor.is_floating_point()
        else torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in on_meta("tiny").official_state_dict().items()
    }


def test_weights_survive_the_way_in_and_out(tmp_path):
    weights = tiny_weights()
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}, "meta": {}}, tmp_path / "a.pth")
    model = BEVFormer.from_official(tmp_path / "a.pth")
    assert model.config.network.compat == "official" and model.config.network.bev_hw == (50, 50)
    assert len(model.load_report.matched) == 643 and not model.load_report.skipped
    model.save_official(tmp_path / "b.safetensors")
    again = BEVFormer.from_official(tmp_path / "b.safetensors").official_state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())

    # The same file starts a training model: network and head go where they belong.
    with torch.device("meta"):
        trainable = model_for_tasks(model.config, {"boxes": Task()})
    own = trainable.own_weights(weights)
    assert own.keys() == trainable.state_dict().keys()
    assert torch.equal(own["heads.boxes.queries"], weights["pts_bbox_head.query_embedding.weight"])


class Task:
    def head(self, features):
        return DetectionHead(DetectionHead.Config(), features[0])

    def cast(self, batch):
        raise NotImplementedError


def test_bgr_networks_take_rgb_pictures():
    model = on_meta("small")
    first = torch.arange(64 * 3 * 49.0).view(64, 3, 7, 7)
    weights = {"img_backbone.conv1.weight": first}
    turned = official.turned(weights, model.config.network.backbone.channel_order)
    assert torch.equal(turned["img_backbone.conv1.weight"], first[:, [2, 1, 0]])
    assert model.config.network.backbone.mean[0] > model.config.network.backbone.mean[2]


def test_weights_that_do_not_fit_are_refused_by_name():
    weights = tiny_weights()
    lacking = {k: v for k, v in weights.items() if "can_bus_mlp.0" not in k}
    with pytest.raises(CheckpointError, match=r"2 missing: pts_bbox_head\.transformer\.can_bus_mlp\.0"):
        BEVFormer.from_official(lacking)
    with pytest.raises(CheckpointError, match=r"1 unexpected: pts_bbox_head\.what"):
        BEVFormer.from_official({**weights, "pts_bbox_head.what": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="version 2"):
        BEVFormer.from_official(
            {**weights, "pts_bbox_head.transformer.fusion.layers.0.conv1.weight": torch.zeros(1)}
        )
    odd = {**weights, "pts_bbox_head.bev_embedding.weight": torch.zeros(100, 256)}
    with pytest.raises(CheckpointError, match="none of tiny, small, base"):
        BEVFormer.from_official(odd)
    with pytest.raises(CheckpointError, match=r"no 'pts_bbox_head\.bev_embedding\.weight'"):
        BEVFormer.from_official({"x": torch.zeros(1)})


def test_parts_that_were_never_published_have_no_official_name():
    with torch.device("meta"):
        model = BEVFormer(BEVFormer.Config.variant("micro"))
    with pytest.raises(CheckpointError, match="no official name for"):
        model.official_names()
