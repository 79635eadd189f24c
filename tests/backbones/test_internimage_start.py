"""How InternImage starts, what stays frozen, and its operators against each other."""

import pytest
import torch
from torch import nn

from allsight.backbones import InternImage
from allsight.engine.optim import AdamW
from allsight.engine.parameter_groups import parameter_groups

SMALL = dict(channels=8, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))


def network(**changes):
    torch.manual_seed(0)
    return InternImage(InternImage.Config(**{**SMALL, **changes}))


def pictures(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block_norm", ["pre", "post", "res_post"])
@pytest.mark.parametrize("operator", ["dcnv3", "conv"])
def test_blocks_that_start_at_zero_are_the_identity(block_norm, operator):
    model = network(block_norm=block_norm, operator=operator, residual_init="zero")
    x = torch.randn(1, 4, 4, 8)
    assert torch.equal(model.stages[0].blocks[0](x), x)


@pytest.mark.parametrize("block_norm", ["pre", "post", "res_post"])
def test_branches_scaled_by_depth_are_smaller_by_the_root_of_their_number(block_norm):
    plain, scaled = (network(block_norm=block_norm, residual_init=start) for start in ("plain", "depth"))
    x = torch.randn(1, 4, 4, 8)
    # The first branch alone: the second sees another input.
    for model in (plain, scaled):
        for parameter in model.stages[0].blocks[0].mlp.fc2.parameters():
            nn.init.zeros_(parameter)
    added = [model.stages[0].blocks[0](x) - x for model in (plain, scaled)]
    torch.testing.assert_close(added[1] * 10**0.5, added[0], rtol=1e-4, atol=1e-6)


def test_linear_layers_start_with_the_deviation_asked_for():
    block = network(channels=32, groups=(2, 2, 2, 2), init_std=0.1).stages[0].blocks[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.1, rel=0.1)


def test_dcnv4_starts_as_its_own_layer_does():
    operator = network(operator="dcnv4", channels=32, groups=(2, 2, 2, 2)).stages[0].blocks[0].dcn
    assert not operator.offset_mask.weight.any()
    bound = (6 / 64) ** 0.5
    assert 0.8 * bound < operator.value_proj.weight.abs().max() <= bound


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 4])
def test_frozen_parts_get_no_gradient_no_mode_and_no_place_in_the_optimiser(frozen):
    model = network(frozen_stages=frozen, norm="batch", drop=0.1).train()
    parts = [model.stem] if frozen >= 0 else []
    parts += [*model.stages[: max(frozen, 0)], *model.downsamples[: max(frozen, 0)]]
    expected = {parameter for part in parts for parameter in part.parameters()}
    assert {p for p in model.parameters() if not p.requires_grad} == expected
    modes = {module: module.training for module in model.modules()}
    assert not any(modes[module] for part in parts for module in part.modules())
    assert all(modes[module] for module in (model, *model.stages[max(frozen, 0) :]))
    assert not model.eval().stages[-1].training
    optimised = {p for group in parameter_groups(model, AdamW.Config()) for p in group["params"]}
    assert optimised.isdisjoint(expected)
    assert len(optimised) + len(expected) == len(list(model.parameters()))


def test_training_leaves_frozen_parts_and_their_running_means_as_they_are():
    model = network(frozen_stages=1, norm="batch").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(pictures())[-1].square().mean().backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("stages.1") for name in changed)
    assert not [n for n in changed if n.startswith(("stem.", "stages.0", "downsamples.0"))]


def test_published_weights_are_frozen_too():
    config = InternImage.Config(**SMALL, frozen_stages=1)
    model = InternImage.from_official(network().official_state_dict(), config)
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert all(p.requires_grad for p in model.stages[1].parameters())


def test_widths_of_flash_variants_are_those_of_their_models():
    for size in ("tiny", "small", "base", "large"):
        flash, plain = (InternImage.Config.variant(name) for name in (f"flash_{size}", size))
        assert (flash.channels, flash.depths, flash.groups) == (plain.channels, plain.depths, plain.groups)
        with torch.device("meta"):
            counts = [sum(p.numel() for p in InternImage(c).parameters()) for c in (flash, plain)]
        assert 0.95 < counts[0] / counts[1] < 1.0
    scales = [
        InternImage.Config.variant(f"flash_{n}").offset_scale for n in ("tiny", "small", "base", "large")
    ]
    assert scales == [1.0, 1.0, 0.5, 2.0]
