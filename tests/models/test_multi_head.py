import pytest
import torch
from torch import nn

from allsight.backbones import InternImage
from allsight.config import ConfigError
from allsight.models import MultiHead, model_for_tasks
from allsight.types import Batch, FeatureSpec

TINY = InternImage.Config.variant("nano", depths=(1, 1, 1, 1))


class MeanHead(nn.Module):
    def __init__(self, features: tuple[FeatureSpec, ...], classes: int):
        super().__init__()
        self.linear = nn.Linear(features[-1].channels, classes)

    def forward(self, maps):
        return {"logits": self.linear(maps[-1].mean((2, 3)))}


class Heads:
    """A task as models see it."""

    def __init__(self, classes=2):
        self.classes = classes

    def head(self, features):
        return MeanHead(features, self.classes)

    def cast(self, batch):
        raise NotImplementedError


class Headless(Heads):
    def head(self, features):
        raise NotImplementedError("Asking has no head")


def batch_of(task, images):
    return Batch(task, tuple(str(i) for i in range(len(images))), {"image": images})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MultiHead(MultiHead.Config(backbone=TINY), {"a": Heads(3), "b": Heads(5)})


def test_a_batch_is_answered_by_the_head_of_its_task(model):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    outputs, state = model(batch_of("a", images))
    assert outputs["logits"].shape == (2, 3)
    assert state is None
    assert model(batch_of("b", images))[0]["logits"].shape == (2, 5)


def test_the_other_heads_get_no_gradient_at_all(model):
    outputs, _ = model(batch_of("a", torch.randn(2, 3, 32, 32)))
    outputs["logits"].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.heads["a"].parameters())
    assert all(p.grad is None for p in model.heads["b"].parameters())
    assert any(p.grad is not None for p in model.backbone.parameters())


def test_uint8_is_normalised_and_floating_point_is_taken_as_it_is(model):
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (TINY.mean, TINY.std))
    expected, _ = model(batch_of("a", (pixels / 255 - mean) / std))
    actual, _ = model(batch_of("a", pixels))
    torch.testing.assert_close(actual["logits"], expected["logits"], rtol=1e-4, atol=1e-5)


def test_heads_get_the_maps_that_the_backbone_announces(model):
    maps = model.backbone(torch.randn(1, 3, 64, 64))
    assert [(m.shape[1], 64 // m.shape[2]) for m in maps] == [
        (s.channels, s.stride) for s in model.feature_specs
    ]


def test_it_is_built_from_its_configuration():
    model = model_for_tasks(MultiHead.Config(backbone=TINY), {"a": Heads()})
    assert isinstance(model, MultiHead)


def test_a_task_without_a_head_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="cannot serve task 'vqa': Asking has no head") as error:
        MultiHead(MultiHead.Config(backbone=TINY), {"vqa": Headless()})
    assert "\n" not in str(error.value)


def test_a_task_named_like_an_attribute_of_modules_is_refused():
    with pytest.raises(ConfigError, match="task 'train': modules of PyTorch"):
        MultiHead(MultiHead.Config(backbone=TINY), {"train": Heads()})


def test_a_batch_of_an_unknown_task_or_without_a_picture_is_refused(model):
    with pytest.raises(ValueError, match="no head for task 'c'; it has a, b"):
        model(batch_of("c", torch.randn(1, 3, 32, 32)))
    with pytest.raises(ValueError, match="needs a tensor 'image'"):
        model(Batch("a", ("x",), {"text": torch.zeros(1, 4)}))


def test_it_runs_in_float64(model):
    outputs, _ = model.double()(batch_of("a", torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)))
    assert outputs["logits"].dtype is torch.float64
