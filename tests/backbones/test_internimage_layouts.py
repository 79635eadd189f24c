"""Published forms of InternImage weights: each layout gives the same network, each variant is recognised."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from allsight.backbones import InternImage
from allsight.backbones import internimage_layouts as layouts
from allsight.backbones import internimage_recognition as recognition
from allsight.models import Classifier
from allsight.types import CheckpointError
from allsight.weights import open_weights, write_weights

# Entries of a classifier's state dict in the official code.
ENTRIES = {"tiny": 633, "small": 751, "base": 751, "large": 839, "xlarge": 883, "huge": 1357, "giant": 1295}
FLASH = [name for name in InternImage.variants if name.startswith("flash_")]


def nano(**changes):
    torch.manual_seed(0)
    return InternImage(InternImage.Config.variant("nano", **changes)).eval()


def on_meta(cls, config):
    with torch.device("meta"):
        return cls(config)


def under(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def same_network(a, b):
    first, second = a.state_dict(), b.state_dict()
    return a.config == b.config and all(torch.equal(first[name], second[name]) for name in second)


def key_lists():
    folder = Path(os.environ.get("ALLSIGHT_PARITY", "")) / "internimage"
    return sorted(folder.glob("keys_*.json")) or [Path("(no ALLSIGHT_PARITY)")]


@pytest.mark.parametrize("file", key_lists(), ids=lambda file: file.stem)
def test_official_key_lists_import_completely_and_come_back(parity, file):
    """Every name and shape of the official code; without numbers, for the largest have gigabytes of them."""
    about = json.loads(file.read_text())
    weights = {name: torch.empty(shape, device="meta") for name, shape in about["state_dict"].items()}
    model = Classifier.from_official(weights)
    assert len(model.load_report.matched) == about["number_of_keys"]
    assert not (model.load_report.missing or model.load_report.unexpected or model.load_report.skipped)
    assert sum(p.numel() for p in model.parameters()) == about["parameter_count_1000_classes"]
    expected = Classifier.Config.from_official_args(about["constructor"])
    unseen = {"backbone": {"drop_path"}}
    assert model.config.model_dump(exclude=unseen) == expected.model_dump(exclude=unseen)
    again = model.official_state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in again.items()} == {
        name: tuple(shape) for name, shape in about["state_dict"].items()
    }


@pytest.mark.parametrize("name", ENTRIES)
def test_every_published_variant_is_recognised_from_names_and_shapes(name):
    config = Classifier.Config.variant(name, num_classes=7)
    weights = on_meta(Classifier, config).official_state_dict()
    assert len(weights) == ENTRIES[name]
    loaded = Classifier.from_official(weights)
    assert loaded.config == config and loaded.load_report.variant == name
    assert len(loaded.load_report.matched) == ENTRIES[name] and not loaded.load_report.skipped


@pytest.mark.parametrize("name", FLASH)
def test_every_flash_variant_is_recognised(name):
    config = InternImage.Config.variant(name)
    weights = on_meta(InternImage, config).official_state_dict()
    groups, of_block = config.groups[0], "levels.0.blocks.0."
    assert weights[f"{of_block}dcn.offset_mask.weight"].shape[0] == math.ceil(27 * groups / 8) * 8
    assert f"{of_block}dcn.value_proj.weight" in weights and f"{of_block}dcn.mask.weight" not in weights
    assert (f"{of_block}dcn.offset_mask_dw.weight" in weights) == (name != "flash_tiny")
    assert (f"{of_block}mlp.fc2.bias" in weights) == (name == "flash_large")
    assert (f"{of_block}dcn.output_proj.bias" in weights) == (name == "flash_large")
    assert "levels.0.blocks.0.norm1.0.weight" in weights and "patch_embed.norm1.1.weight" in weights
    found = layouts.find(open_weights(weights))
    assert recognition.configure(InternImage.Config, found, InternImage.variants)[0] == config
    assert recognition.variant_of(config.model_dump(), InternImage.variants) == name


def test_what_the_names_do_not_tell_is_said():
    found = layouts.find(
        open_weights(on_meta(InternImage, InternImage.Config.variant("large")).official_state_dict())
    )
    _, notes = recognition.configure(InternImage.Config, found, InternImage.variants)
    act = "act leaves no trace in weights: gelu taken"
    assert notes == ("offset_scale leaves no trace in weights: 2.0 as 'large' has", act)


def test_of_a_config_json_only_what_it_states_is_believed(tmp_path):
    """Official defaults fill the rest of the constructor's arguments, and are nobody's statement."""
    write_weights(nano().official_state_dict(), tmp_path / "model.safetensors")
    stated = {"model_type": "intern_image", "core_op": "DCNv3_pytorch", "channels": 16}
    for more, act in (({}, "gelu"), ({"act_layer": "SiLU"}, "silu")):
        (tmp_path / "config.json").write_text(json.dumps({**stated, **more}))
        loaded = InternImage.from_official(tmp_path)
        assert loaded.config == InternImage.Config.variant("nano", act=act)
        assert ("act leaves no trace in weights: gelu taken" in loaded.load_report.notes) == (not more)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"depths": 5}, "depths: expected a list of numbers, got 5"),
        ({"groups": None}, "groups: expected a list of numbers, got None"),
        ({"core_op": "DCNv4"}, "core_op: expected DCNv3, got 'DCNv4'"),
        ({"norm_layer": ["LN"]}, "norm_layer: expected one of LN, BN"),
        ({"frozen_stages": "all"}, "frozen_stages: expected a number"),
        ({"level2_post_norm_block_ids": 5}, "level2_post_norm_block_ids: expected a list"),
        ({"mlp_ratio": "four", "act_layer": None}, "act_layer: expected one of"),
    ],
)
def test_a_config_json_that_is_not_understood_is_refused_in_a_line(tmp_path, stated, said):
    write_weights(nano().official_state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internimage", **stated}))
    with pytest.raises(CheckpointError, match=said) as caught:
        InternImage.from_official(tmp_path)
    assert "config.json beside the weights" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        dict(channels=24, depths=(1, 2, 3, 1), groups=(2, 4, 8, 16)),
        dict(block_norm="post"),
        dict(block_norm="post", idle_res_post_norm=True),
        dict(block_norm="res_post"),
        dict(block_norm="pre", idle_res_post_norm=True, layer_scale=1.0),
        dict(block_norm="res_post", center_feature_scale=True, dw_kernel_size=5),
        dict(block_norm="post", center_feature_scale=True, dw_kernel_size=7),
        dict(depths=(1, 1, 8, 1), third_stage_norm_after=(5,)),
        dict(norm="batch", mlp_ratio=2.0),
        dict(remove_center=True),
        dict(operator="dcnv4", remove_center=True),
        dict(operator="dcnv4", dw_kernel_size=None, output_bias=False),
        dict(operator="conv"),
        dict(shared_weights=False),
        dict(depths=(1, 2), groups=(1, 2), out_stages=(0, 1)),
    ],
    ids=str,
)
def test_sizes_nobody_published_are_built_from_their_shapes(changes):
    model = nano(**changes)
    loaded = InternImage.from_official(model.official_state_dict())
    assert same_network(loaded, model)


def test_further_norms_at_unknown_places_are_refused():
    weights = nano(depths=(1, 1, 4, 1), third_stage_norm_after=(0, 2)).official_state_dict()
    with pytest.raises(CheckpointError, match=r"2 further norms among 4 blocks.*pass a config"):
        InternImage.from_official(weights)


@pytest.mark.parametrize(
    ("prefix", "beside", "said"),
    [
        ("backbone.", "roi_head.mask_head.convs.0.conv.weight", "the backbone of Mask R-CNN"),
        ("backbone.", "roi_head.bbox_head.0.fc_cls.weight", "the backbone of Cascade Mask R-CNN"),
        ("backbone.", "bbox_head.transformer.level_embeds", "the backbone of DINO"),
        ("backbone.", "decode_head.psp_modules.0.1.conv.weight", "the backbone of UperNet"),
        ("backbone.", "decode_head.pixel_decoder.level_encoding.weight", "the backbone of Mask2Former"),
        ("img_backbone.", "pts_bbox_head.code_weights", "the backbone of BEVFormer"),
        ("backbone.cb_modules.0.", "backbone.cb_modules.1.gamma0", "CB-InternImage: the first of two"),
        ("student.", "teacher.patch_embed.conv1.weight", "taken from student., not from teacher."),
        ("model.", "criterion.weight", ""),
    ],
)
def test_backbones_of_larger_networks_are_extracted_with_a_note(prefix, beside, said):
    model = nano(layer_scale=1.0)
    weights = under(prefix, model.official_state_dict()) | {beside: torch.zeros(1)}
    loaded = InternImage.from_official({"state_dict": weights, "meta": {"epoch": 12}})
    assert same_network(loaded, model)
    assert beside in loaded.load_report.skipped
    assert said in "\n".join(loaded.load_report.notes)


def test_buffers_of_an_averaging_hook_are_left_out():
    weights = under("backbone.", nano().official_state_dict())
    buffers = {"ema_" + name.replace(".", "_"): torch.zeros(1) for name in weights}
    report = InternImage.from_official({"state_dict": weights | buffers}).load_report
    assert set(report.skipped) == set(buffers) and f"{len(buffers)} buffers ema_..." in report.notes[0]


def test_dumps_of_m3i_are_understood():
    config = Classifier.Config(
        backbone=InternImage.Config.variant("nano", block_norm="res_post", center_feature_scale=True),
        head="attention",
        num_classes=5,
    )
    model = Classifier(config)
    weights = model.official_state_dict()
    inner = ("patch_embed.", "levels.", "dcnv3_head_")
    moved = {"mask_token": torch.zeros(1), "mm_dcnv3.patch_embed.conv1.weight": torch.zeros(1)}
    for name, tensor in weights.items():
        name = name.replace("fc_norm.0.", "clip.classifier_ln.") if name.startswith("fc_norm") else name
        name = name.replace("head.", "clip.classifier.") if name.startswith("head.") else name
        moved["dcnv3." + name if name.startswith(inner) else name] = tensor
    loaded = Classifier.from_official(moved)
    assert same_network(loaded, model)
    assert set(loaded.load_report.skipped) == {"mask_token", "mm_dcnv3.patch_embed.conv1.weight"}
    # The official loader forgets the place of this norm in its Sequential.
    renamed = {name.replace("fc_norm.0.", "fc_norm."): tensor for name, tensor in weights.items()}
    assert same_network(Classifier.from_official(renamed), model)


def test_two_networks_in_one_file_are_refused():
    weights = nano().official_state_dict()
    with pytest.raises(CheckpointError, match=r"InternImage is there 2 times, under a\., b\.; give"):
        InternImage.from_official(under("a.", weights) | under("b.", weights))


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (["conv1.weight", "layer1.0.conv1.weight"], "a ResNet"),
        (["layers.0.blocks.0.attn.relative_position_bias_table"], "a Swin Transformer"),
        (["downsample_layers.0.0.weight", "stages.0.0.gamma"], "a ConvNeXt"),
        (["cls_token", "blocks.0.attn.qkv.weight"], "a vision transformer"),
        (["something.weight"], "it has something.weight"),
    ],
)
@pytest.mark.parametrize("cls", [InternImage, Classifier])
def test_weights_of_other_networks_are_refused_in_a_line(cls, names, looks):
    with pytest.raises(CheckpointError, match=f"no InternImage weights.*{looks}") as caught:
        cls.from_official({name: torch.zeros(1) for name in names})
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_names_what_is_missing_by_its_pattern():
    weights = nano().official_state_dict()
    cut = {name: tensor for name, tensor in weights.items() if ".mlp.fc2." not in name}
    with pytest.raises(
        CheckpointError, match=r"10 missing: levels\.0-3\.blocks\.0-1\.mlp\.fc2\.weight \(5\)"
    ):
        InternImage.from_official(cut)
    cut = {name: tensor for name, tensor in weights.items() if "levels.1." not in name}
    with pytest.raises(CheckpointError, match=r"levels\.1\.blocks\.0 is missing"):
        InternImage.from_official(cut)


def test_layer_scales_of_one_may_be_missing_since_they_change_nothing():
    """The dense configurations of T have them, its classification weights do not."""
    plain = nano()
    scaled = InternImage.from_official(
        plain.official_state_dict(), InternImage.Config.variant("nano", layer_scale=1.0)
    ).eval()
    report = scaled.load_report
    assert len(report.missing) == 2 * 5 and "it starts at 1.0, which changes nothing" in report.notes[0]
    images = torch.randn(1, 3, 40, 33)
    for a, b in zip(scaled(images), plain(images), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match=r"the model: the weights have layer_scale=None; .*missing"):
        InternImage.from_official(
            plain.official_state_dict(), InternImage.Config.variant("nano", layer_scale=1e-5)
        )


@pytest.mark.parametrize("operator", ["dcnv3", "dcnv4"])
def test_remove_center_drops_the_rows_of_the_middle_point(operator):
    torch.manual_seed(0)
    full = nano(operator=operator)
    for name, parameter in full.named_parameters():
        if "mask" in name or "offset" in name:
            torch.nn.init.normal_(parameter)
    config = InternImage.Config.variant("nano", operator=operator, remove_center=True)
    loaded = InternImage.from_official(full.official_state_dict(), config)
    assert "remove_center" in loaded.load_report.notes[-1]
    theirs, ours = full.stages[1].blocks[0].dcn, loaded.stages[1].blocks[0].dcn
    if operator == "dcnv3":
        # Two groups of points, by hand.
        kept = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17]
        assert torch.equal(ours.mask.bias, theirs.mask.bias[kept])
        assert torch.equal(ours.offset.weight[::2], theirs.offset.weight[::2][kept])
        assert torch.equal(ours.offset.weight[1::2], theirs.offset.weight[1::2][kept])
    else:
        rows = [*range(8), *range(10, 22), *range(23, 27)]
        kept = rows + [27 + row for row in rows]
        assert torch.equal(ours.offset_mask.weight, theirs.offset_mask.weight[kept])


@pytest.mark.parametrize("changes", [dict(), dict(block_norm="post", layer_scale=1e-5, offset_scale=2.0)])
@pytest.mark.parametrize("as_classifier", [False, True])
def test_hugging_face_folders_come_back(tmp_path, changes, as_classifier):
    """An offset scale leaves no trace in the weights; config.json states it."""
    config = InternImage.Config.variant("micro", **changes)
    cls = Classifier if as_classifier else InternImage
    model = cls(Classifier.Config(backbone=config, num_classes=5) if as_classifier else config)
    model.save_huggingface(tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
        again = cls.from_official(place)
        assert same_network(again, model)
        assert again.load_report.layout == "safetensors, names of Hugging Face"
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["model_type"] == "internimage" and about["num_classes"] == (5 if as_classifier else 0)
    assert about["offset_scale"] == config.offset_scale and about["depths"] == [1, 1, 3, 1]
    about["channels"] = 64
    (tmp_path / "out" / "config.json").write_text(json.dumps(about))
    with pytest.raises(
        CheckpointError, match=r"config\.json beside it says channels=64, the weights have 32"
    ):
        cls.from_official(tmp_path / "out")


def test_names_of_hugging_face_are_the_official_ones_but_for_layer_scales(tmp_path):
    nano(block_norm="post", layer_scale=1.0).save_huggingface(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.levels.0.blocks.0.layer_scale1", "model.patch_embed.norm1.1.weight"} <= names
    assert not any("gamma" in name for name in names)


def test_what_the_official_code_does_not_have_is_not_exported(tmp_path):
    with pytest.raises(CheckpointError, match="operator='dcnv4' is unknown to the official code"):
        nano(operator="dcnv4").save_huggingface(tmp_path)


@pytest.mark.parametrize("prefix", ["", "backbone.", "classifier.backbone.", "parts.a.backbone."])
def test_own_names_are_understood(tmp_path, prefix):
    model = nano(norm="batch")
    write_weights(under(prefix, model.state_dict()), tmp_path / "w.safetensors")
    loaded = InternImage.from_official(tmp_path / "w.safetensors")
    assert same_network(loaded, model) and "names of allsight" in loaded.load_report.layout


def test_report_says_where_from_and_what():
    report = InternImage.from_official(
        {"state_dict": under("backbone.", nano().official_state_dict())}
    ).load_report
    first, *_ = str(report).splitlines()
    assert first == "the given mapping: mapping, under state_dict, official names under backbone., nano"
