"""Whole networks prepared for inference: the outputs of every variant's structure, and no way back."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from allsight.backbones import InternImage
from allsight.models import Classifier, MultiHead
from allsight.tasks import Classification
from allsight.types import Batch


def narrow(name, **changes):
    """A classifier with the structure of a variant, little of each, and nothing at its start value."""
    variant = InternImage.Config.variant(name)
    third = (0, 1) if variant.third_stage_norm_after else ()
    sizes = dict(channels=8, depths=(1, 1, 3, 1), groups=(1, 2, 4, 8), third_stage_norm_after=third)
    head = Classifier.Config.variant(name).head
    torch.manual_seed(0)
    backbone = InternImage.Config.variant(name, **sizes, **changes)
    model = Classifier(Classifier.Config(backbone=backbone, num_classes=7, head=head)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def relative(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


def pictures(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in ("tiny", "small", "large", "huge", "giant")),
        ("tiny", dict(layer_scale=0.3, norm="batch", act="relu")),
        ("large", dict(norm="batch", remove_center=True)),
    ],
)
def test_a_prepared_network_gives_the_same_at_every_size(name, changes):
    model = narrow(name, **changes)
    prepared = model.for_inference()
    again = prepared.for_inference()
    sizes = [(2, 3, 64, 96)]
    if model.config.head == "conv":
        sizes += [(1, 3, 37, 51)]
    with torch.no_grad():
        for size in sizes:
            images = pictures(*size)
            assert relative(prepared(images), model(images)) < 1e-5
            assert torch.equal(again(images), prepared(images))
    bytes_images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert relative(prepared(bytes_images), model(bytes_images).detach()) < 1e-5


def test_nothing_is_left_of_factors_and_batch_norms():
    model = narrow("small", norm="batch")
    prepared = model.for_inference()
    assert any("gamma" in name for name, _ in model.named_parameters())
    assert not any("gamma" in name for name, _ in prepared.named_parameters())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in prepared.modules())


def test_the_network_itself_stays_as_it_is():
    model = narrow("small").train()
    before = copy.deepcopy(model.state_dict())
    prepared = model.for_inference()
    assert model.training and not model.is_prepared and prepared.is_prepared
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_training_is_refused_before_anything_changes():
    prepared = narrow("small").for_inference()
    for network in (prepared, prepared.backbone):
        with pytest.raises(RuntimeError, match="was prepared for inference and cannot be trained"):
            network.train()
        assert not any(module.training for module in prepared.modules())
    assert prepared.eval() is prepared


def test_a_model_of_several_tasks_is_prepared_like_any_other():
    torch.manual_seed(0)
    backbone = InternImage.Config.variant("nano", depths=(1, 1, 1, 1), layer_scale=0.5)
    tasks = {"a": Classification(Classification.Config(data="imagefolder:x", num_classes=5))}
    model = MultiHead(MultiHead.Config(backbone=backbone), tasks).eval()
    batch = Batch("a", ("one",), {"image": pictures(1, 3, 64, 64)})
    with torch.no_grad():
        expected, actual = model(batch)[0]["logits"], model.for_inference()(batch)[0]["logits"]
    assert relative(actual, expected) < 1e-5


COMPILED = """
import torch
from allsight.backbones import InternImage

torch.manual_seed(0)
config = InternImage.Config.variant("nano", depths=(2, 2), groups=(1, 2), out_stages=(0, 1))
model = InternImage(config).eval()
compiled = model.for_inference(compile="eager")
with torch.no_grad():
    for size in ((2, 3, 37, 45), (2, 3, 50, 64)):
        images = torch.randn(*size)
        for actual, expected in zip(compiled(images), model(images)):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
# One program a stage, whatever the number of blocks and sizes.
programs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
assert programs == 2, programs
"""


@pytest.mark.slow
def test_compiled_blocks_share_a_program_for_all_sizes():
    # In a process of its own: the shape checks of the test run and torch.compile do not get along.
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
