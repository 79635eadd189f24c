"""InternImage: sizes, announced maps, gradients, recomputation, input types, settings."""

import subprocess
import sys

import jaxtyping
import pytest
import torch

from allsight import ops
from allsight.backbones import InternImage
from allsight.config import ConfigError, build, dump
from allsight.layers import prepare_for_inference
from allsight.types import FeatureSpec

SMALL = dict(channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))
KINDS = {
    "pre": dict(),
    "post": dict(block_norm="post", layer_scale=0.1),
    "res_post": dict(
        block_norm="res_post", dw_kernel_size=5, center_feature_scale=True, third_stage_norm_after=(0, 1)
    ),
    "post_with_center": dict(block_norm="post", center_feature_scale=True, third_stage_norm_after=(1,)),
    "remove_center": dict(remove_center=True, act="relu", offset_scale=2.0),
    "dropping": dict(drop=0.2, drop_path=0.3, act="silu", drop_path_rule="uniform"),
    "batch_norm": dict(norm="batch", layer_scale=0.1),
    "flash": dict(operator="dcnv4", output_bias=False, dw_kernel_size=None, offset_scale=0.5),
    "flash_post": dict(operator="dcnv4", block_norm="post", layer_scale=0.1, remove_center=True),
    "conv": dict(operator="conv", groups=(1, 2, 2, 2)),
    "unbounded": dict(softmax=False, layer_scale=0.1),
    "unshared": dict(shared_weights=False, offset_scale=2.0),
}


def network(**changes):
    torch.manual_seed(0)
    return awake(InternImage(InternImage.Config(**{**SMALL, **changes})))


def awake(model):
    """Move what starts at zero, so that offsets, weights and gates take part."""
    for module in model.modules():
        for name in ("offset", "mask", "offset_mask", "center_feature_scale"):
            linear = getattr(module, name, None)
            if isinstance(linear, torch.nn.Linear):
                torch.nn.init.normal_(linear.weight, std=0.3)
                torch.nn.init.normal_(linear.bias, std=0.3)
    return model


def pictures(batch=2, height=48, width=40, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", InternImage.variants)
def test_variant_announces_its_four_maps(name):
    """With one block a stage, since depth changes no size; whole variants are counted with the classifier."""
    config = InternImage.Config.variant(name, depths=(1, 1, 1, 1), third_stage_norm_after=())
    with torch.device("meta"):
        model = InternImage(config)
        maps = model(torch.empty(1, 3, 64, 96))
    specs = tuple(FeatureSpec(config.channels * 2**i, 4 * 2**i) for i in range(4))
    assert model.feature_specs == specs
    assert [tuple(m.shape) for m in maps] == [(1, s.channels, 64 // s.stride, 96 // s.stride) for s in specs]


def test_nano_has_about_400_thousand_parameters_and_micro_about_2_million():
    count = {
        n: sum(p.numel() for p in InternImage(InternImage.Config.variant(n)).parameters())
        for n in ("nano", "micro")
    }
    assert 0.35e6 < count["nano"] < 0.45e6
    assert 1.6e6 < count["micro"] < 2.4e6


@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 61), (1, 5), (33, 64)])
def test_any_size_gives_maps_rounded_up(height, width):
    model = network().eval()
    for spec, feature in zip(model.feature_specs, model(pictures(1, height, width)), strict=True):
        expected = (1, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
        assert tuple(feature.shape) == expected


@pytest.mark.parametrize("stride", [4, 2, 1])
def test_stem_stride_sets_the_stride_of_the_first_map(stride):
    model = network(stem_stride=stride)
    assert [spec.stride for spec in model.feature_specs] == [stride * 2**i for i in range(4)]
    assert [m.shape[-1] for m in model(pictures(1, 32, 32))] == [32 // stride // 2**i for i in range(4)]


def test_out_stages_choose_maps_and_leave_later_stages_out():
    whole, part = network().eval(), network(out_stages=(0, 2)).eval()
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    expected = whole(pictures())
    first, third = part(pictures())
    assert torch.equal(first, expected[0])
    assert torch.equal(third, expected[2])
    assert len(part.stages) == 3
    assert part.feature_specs == (whole.feature_specs[0], whole.feature_specs[2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    model = network(**{**KINDS[kind], "drop": 0.0, "drop_path": 0.0}).eval()
    sum(feature.square().sum() for feature in model(pictures())).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_blocks_changes_nothing(kind):
    """Outputs, gradients, random draws and running statistics, in train mode."""
    results = []
    for remat in ("none", "block", "selective"):
        model = network(**KINDS[kind], remat=remat).train()
        images = pictures().requires_grad_()
        torch.manual_seed(1)
        maps = model(images)
        torch.stack([feature.square().mean() for feature in maps]).sum().backward()
        results.append([*maps, images.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for kept, *recomputed in zip(*results, strict=True):
        for other in recomputed:
            torch.testing.assert_close(other, kept, rtol=0, atol=0)


def test_recomputing_saves_memory_of_the_blocks():
    def saved(remat):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            network(remat=remat)(pictures())
        return sum(sizes)

    assert saved("block") < 0.5 * saved("none")


def test_state_dict_round_trips():
    model, other = network(), network(act="gelu")
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(model.state_dict())
    for a, b in zip(model.eval()(pictures()), other.eval()(pictures()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", InternImage.variants)
def test_config_round_trips_through_plain_data(name):
    config = InternImage.Config.variant(name, remat="block")
    assert build(InternImage.Config, dump(config)) == config


def test_uint8_is_normalised_and_floating_point_is_taken_as_it_is():
    model = network().eval()
    bytes_ = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.mean, model.config.std))
    for a, b in zip(model(bytes_), model((bytes_ / 255 - mean) / std), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"images: expected uint8 or floating point, got torch.int32"):
        model(bytes_.int())


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (3, 32, 32), (1, 3, 0, 32)])
def test_pictures_of_other_shapes_are_refused_in_a_line(shape, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(
        ValueError, match=r"images: expected \[b, 3, h, w\] of one pixel at least, channels first"
    ):
        network()(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"images: expected a tensor .* got ndarray"):
        network()(torch.zeros(shape).numpy())


def test_each_picture_of_a_batch_is_computed_alone():
    model = network(**KINDS["res_post"]).eval().double()
    images = pictures(3).double()
    for together, alone in zip(model(images), model(images[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone)


def test_drop_path_rises_linearly_or_is_uniform():
    def chances(**changes):
        model = network(drop_path=0.4, depths=(1, 1, 2, 1), **changes)
        return [block.drop_path.probability for stage in model.stages for block in stage.blocks]

    assert chances() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert chances(drop_path_rule="uniform") == [0.4] * 5


def test_linear_layers_start_small_but_those_of_the_operator_as_it_wants():
    torch.manual_seed(0)
    block = InternImage(InternImage.Config.variant("nano")).stages[0].blocks[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not block.dcn.offset.weight.any()
    bound = (6 / (2 * 16)) ** 0.5
    assert 0.8 * bound < block.dcn.input_proj.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(groups=(1, 2, 4)), r"groups: expected one number per stage \(4\)"),
        (dict(groups=(3, 2, 4, 8)), r"groups: stage 0 has 8 channels, not divisible by 3"),
        (dict(dw_kernel_size=4), r"dw_kernel_size: expected an odd size, got 4"),
        (dict(block_norm="res_post", layer_scale=1.0), r"block_norm: 'res_post' has no layer_scale"),
        (dict(out_stages=(2, 1)), r"out_stages: expected rising numbers from 0 to 3"),
        (dict(out_stages=(4,)), r"out_stages: expected rising numbers from 0 to 3"),
        (dict(third_stage_norm_after=(2,)), r"third_stage_norm_after: expected rising numbers from 0 to 1"),
        (dict(std=(1.0, 0.0, 1.0)), r"std"),
        (dict(operator="dcnv4", softmax=False), r"softmax: False is for operator='dcnv3'; 'dcnv4' never has"),
        (dict(operator="conv", softmax=False), r"softmax: False is for operator='dcnv3'"),
        (dict(operator="dcnv4", shared_weights=False), r"shared_weights: False is for operator='dcnv3'"),
        (dict(shared_weights=False, center_feature_scale=True), r"shared_weights: False does not go with"),
        (dict(output_bias=False), r"output_bias: False is for operator='dcnv4', got 'dcnv3'"),
        (dict(dw_kernel_size=None), r"dw_kernel_size: 'dcnv3' needs one"),
        (dict(operator="conv", offset_scale=2.0), r"offset_scale: operator='conv' samples a fixed grid"),
        (dict(operator="conv", dw_kernel_size=5), r"dw_kernel_size: operator='conv'"),
        (dict(operator="conv", remove_center=True), r"remove_center: operator='conv'"),
        (dict(operator="conv", center_feature_scale=True), r"center_feature_scale: operator='conv'"),
        (dict(layer_scale=0.1, residual_init="zero"), r"residual_init: 'zero' and layer_scale both"),
        (dict(frozen_stages=5), r"frozen_stages: 4 stages are built, got 5"),
        (dict(frozen_stages=3, out_stages=(0, 1)), r"frozen_stages: 2 stages are built, got 3"),
        (dict(chanels=8), r"did you mean 'channels'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        InternImage.Config(**{**SMALL, **changes})


COMPILED = """
import torch
from allsight.backbones import InternImage
from allsight.layers import DCNv3

for remat, backend in (("none", "aot_eager"), ("block", "eager")):
    sizes = dict(channels=8, depths=(1, 1), groups=(1, 2), out_stages=(0, 1))
    model = InternImage(InternImage.Config(**sizes, remat=remat))
    images = torch.randn(2, 3, 37, 45)
    losses = []
    for run in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        sum(feature.square().mean() for feature in run(images)).backward()
        losses.append([p.grad.clone() for p in model.parameters()])
    for eager, compiled in zip(*losses):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)
layer = DCNv3(8, 2, stride=2)
program = torch.export.export(layer, (torch.randn(1, 6, 7, 8),))
"""


@pytest.mark.slow
def test_compiled_whole_it_gives_the_same_gradients():
    # In a process of its own: the shape checks of the test run and torch.compile do not get along.
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_fused_and_prepared_networks_give_the_same_maps(kind):
    model, images = network(**KINDS[kind]).eval(), pictures()
    expected = [m.detach() for m in model(images)]
    with torch.no_grad():
        plain = model(images)
    for maps in (plain, prepare_for_inference(model)(images)):
        for actual, e in zip(maps, expected, strict=True):
            assert float((actual - e).abs().max() / e.abs().max()) < 1e-5


@pytest.mark.skipif(not ops.is_compiled(), reason="no compiled kernels")
def test_hooks_of_blocks_and_norms_are_called_without_gradients_too():
    model, images, seen = network().eval(), pictures(), []
    with torch.no_grad():
        expected = model(images)
        for module in (model.stages[2].blocks[1], model.stages[0].blocks[0].norm2, model.stages[1].norm):
            module.register_forward_hook(lambda module, *call: seen.append(module))
        maps = model(images)
    assert len(seen) == 3
    for actual, e in zip(maps, expected, strict=True):
        assert float((actual - e).abs().max() / e.abs().max()) < 1e-5
