"""Official names, arguments and sizes, and how they translate."""

from inspect import unwrap

import pytest
import torch

from allsight.backbones import InternImage
from allsight.backbones import internimage_official as official
from allsight.config import ConfigError
from allsight.types import CheckpointError

CONSTRUCTOR = dict(
    core_op="DCNv3_pytorch", channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], drop_path_rate=0.1
)


def translated(**changes):
    return InternImage.Config.from_official_args({**CONSTRUCTOR, **changes})


def nano():
    torch.manual_seed(0)
    return InternImage(InternImage.Config.variant("nano")).eval()


def maps_agree(a, b):
    images = torch.randn(1, 3, 40, 33)
    return all(torch.equal(x, y) for x, y in zip(a(images), b(images), strict=True))


@pytest.mark.parametrize(
    ("flags", "block_norm", "idle"),
    [
        (dict(), "pre", False),
        (dict(post_norm=True), "post", False),
        (dict(res_post_norm=True), "res_post", False),
        (dict(res_post_norm=True, layer_scale=1.0), "pre", True),
        (dict(res_post_norm=True, post_norm=True), "post", True),
        (dict(res_post_norm=True, post_norm=True, layer_scale=1.0), "post", True),
    ],
)
def test_precedence_of_the_norm_flags_is_the_official_one(flags, block_norm, idle):
    config = translated(**flags)
    assert (config.block_norm, config.idle_res_post_norm) == (block_norm, idle)


def test_level2_norms_need_both_arguments():
    assert translated(level2_post_norm=True, level2_post_norm_block_ids=[0, 1]).third_stage_norm_after == (
        0,
        1,
    )
    assert translated(level2_post_norm=False, level2_post_norm_block_ids=[0]).third_stage_norm_after == ()
    assert translated(level2_post_norm=True).third_stage_norm_after == ()


def test_arguments_that_are_not_given_have_the_official_defaults():
    config = InternImage.Config.from_official_args({"channels": 48})
    assert (config.depths, config.groups, config.drop_path) == ((3, 4, 18, 5), (3, 6, 12, 24), 0.2)


def test_detection_block_is_understood():
    config = translated(type="InternImage", _delete_=True, init_cfg=None, out_indices=(1, 2, 3), with_cp=True)
    assert config.out_stages == (1, 2, 3)
    assert config.remat == "block"


# Decisive lines of classification/configs/internimage_{l,h}_22kto1k_*.yaml as a YAML reader gives them: 1e-5
# without a point and None are text to it.
LARGE = {
    "DATA": {"IMG_SIZE": 384},
    "MODEL": {
        "TYPE": "intern_image",
        "DROP_PATH_RATE": 0.1,
        "LABEL_SMOOTHING": 0.3,
        "INTERN_IMAGE": {
            "CORE_OP": "DCNv3",
            "DEPTHS": [5, 5, 22, 5],
            "GROUPS": [10, 20, 40, 80],
            "CHANNELS": 160,
            "LAYER_SCALE": "1e-5",
            "OFFSET_SCALE": 2.0,
            "MLP_RATIO": 4.0,
            "POST_NORM": True,
        },
    },
    "TRAIN": {"USE_CHECKPOINT": True},
}
HUGE = {
    "CORE_OP": "DCNv3",
    "DEPTHS": [6, 6, 32, 6],
    "GROUPS": [10, 20, 40, 80],
    "CHANNELS": 320,
    "DW_KERNEL_SIZE": 5,
    "LAYER_SCALE": "None",
    "OFFSET_SCALE": 1.0,
    "MLP_RATIO": 4.0,
    "POST_NORM": False,
    "RES_POST_NORM": True,
    "LEVEL2_POST_NORM": True,
    "LEVEL2_POST_NORM_BLOCK_IDS": [5, 11, 17, 23, 29],
    "CENTER_FEATURE_SCALE": True,
    "USE_CLIP_PROJECTOR": True,
}


def test_yaml_of_the_official_configurations_gives_our_variants():
    large = InternImage.Config.variant("large", drop_path=0.1)
    assert InternImage.Config.from_official_args(LARGE) == InternImage.Config.variant(
        "large", drop_path=0.1, remat="block"
    )
    assert InternImage.Config.from_official_args(LARGE["MODEL"]) == large
    assert InternImage.Config.from_official_args(HUGE) == InternImage.Config.variant("huge", drop_path=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(chanels=3), "no argument 'chanels'; did you mean 'channels'"),
        (dict(core_op="DCNv4"), "core_op: expected DCNv3, got 'DCNv4'"),
        (dict(norm_layer="GN"), "norm_layer: expected one of LN, BN, got 'GN'"),
        (dict(act_layer="tanh"), "act_layer: expected one of GELU, SiLU, ReLU, got 'tanh'"),
        (dict(frozen_stages=1), "frozen_stages"),
        (dict(depths=4), "depths: expected a list of numbers, got 4"),
        (dict(groups="3, 6"), "groups: expected a list of numbers, got '3, 6'"),
    ],
)
def test_arguments_we_do_not_have_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        translated(**changes)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([1], r"arguments: expected names with values, got \[1\]"),
        ({5: 1}, "arguments: expected names with values"),
        ({"MODEL": 5}, "MODEL: expected names with values, got 5"),
        ({"MODEL": {"INTERN_IMAGE": 5}}, r"MODEL\.INTERN_IMAGE: expected names with values, got 5"),
        ({"MODEL": {"INTERN_IMAGE": {}}, "TRAIN": 5}, "TRAIN: expected names with values, got 5"),
    ],
)
def test_arguments_of_another_form_are_refused(args, said):
    with pytest.raises(ConfigError, match=said):
        unwrap(official.official_args)(args)


def test_the_kernel_of_dcnv4_is_the_same_operator():
    """The flag chooses a faster kernel; the weights of the points still go through softmax."""
    assert translated(core_op="DCNv3", use_dcn_v4_op=True) == translated()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saved_weights_come_back_and_their_variant_is_recognised(tmp_path, suffix):
    model = nano()
    model.save_official(tmp_path / f"weights{suffix}")
    again = InternImage.from_official(tmp_path / f"weights{suffix}")
    assert again.config == model.config
    assert maps_agree(again.eval(), model)
    assert len(again.load_report.matched) == len(model.state_dict())
    assert not (again.load_report.missing or again.load_report.unexpected or again.load_report.skipped)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone."])
def test_prefixes_of_training_frameworks_are_understood(prefix):
    model = nano()
    weights = {prefix + name: tensor for name, tensor in model.official_state_dict().items()}
    other = prefix.removesuffix("backbone.") + "neck.lateral.weight"
    if "backbone" in prefix:
        weights[other] = torch.zeros(3)
    loaded = InternImage.from_official({"state_dict": weights, "meta": {"epoch": 12}})
    assert maps_agree(loaded.eval(), model)
    assert loaded.load_report.skipped == (("neck.lateral.weight",) if "backbone" in prefix else ())


def test_heads_are_skipped_by_rule_and_said_so():
    weights = nano().official_state_dict() | {
        "head.weight": torch.zeros(5, 192),
        "conv_head.1.0.weight": torch.ones(192),
    }
    report = InternImage.from_official(weights).load_report
    assert report.skipped == ("head.weight", "conv_head.1.0.weight")
    assert "2 skipped by rule: head.weight, conv_head.1.0.weight" in str(report)


def test_stages_that_are_not_built_are_skipped_by_rule():
    weights = nano().official_state_dict()
    config = InternImage.Config.variant("nano", out_stages=(1,))
    loaded = InternImage.from_official(weights, config)
    assert {name.split(".")[1] for name in loaded.load_report.skipped} == {"1", "2", "3"}
    assert "levels.1.downsample.conv.weight" in loaded.load_report.skipped
    assert "levels.0.downsample.conv.weight" in loaded.load_report.matched


def test_16_bit_weights_are_loaded_as_float32():
    weights = {k: v.half() for k, v in nano().official_state_dict().items()}
    loaded = InternImage.from_official(weights)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_loaded_weights_are_copies():
    weights = nano().official_state_dict()
    loaded = InternImage.from_official(weights)
    with torch.no_grad():
        loaded.stem.conv1.weight.zero_()
    assert weights["patch_embed.conv1.weight"].any()


def test_layer_scale_and_remove_center_are_seen_in_the_weights():
    for changes in (dict(layer_scale=1.0), dict(remove_center=True)):
        model = InternImage(InternImage.Config.variant("nano", **changes))
        assert InternImage.from_official(model.official_state_dict()).config == model.config


def test_weights_that_do_not_fit_are_listed():
    weights = nano().official_state_dict()
    del weights["levels.0.norm.0.bias"]
    weights["levels.0.extra"] = torch.zeros(1)
    weights["patch_embed.conv1.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as error:
        InternImage.from_official(weights)
    message = str(error.value)
    assert "1 missing: levels.0.norm.0.bias" in message
    assert "1 unexpected: levels.0.extra" in message
    assert "1 of another shape: patch_embed.conv1.bias: (3,) in the file, (8,) in the model" in message


def test_a_foreign_size_is_built_and_the_nearest_variant_named():
    config = InternImage.Config.variant("nano", depths=(1, 1, 4, 1))
    loaded = InternImage.from_official(InternImage(config).official_state_dict())
    assert loaded.config == config and loaded.load_report.variant == ""
    assert "depths=(1, 1, 4, 1), groups=(1, 2, 4, 8); the nearest is 'nano'" in loaded.load_report.notes[0]
    assert "offset_scale leaves no trace in weights: 1.0 taken" in loaded.load_report.notes


def test_weights_of_another_variant_are_named():
    weights = nano().official_state_dict()
    with pytest.raises(
        CheckpointError,
        match=r"the model: the weights are InternImage nano \(operator=dcnv3, channels=16.*\), the model is "
        r"InternImage micro \(.*missing",
    ):
        InternImage.from_official(weights, InternImage.Config.variant("micro"))
    with pytest.raises(CheckpointError, match=r"the model: the weights have block_norm=pre; "):
        InternImage.from_official(weights, InternImage.Config.variant("nano", block_norm="res_post"))
