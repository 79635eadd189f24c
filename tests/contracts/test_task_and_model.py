import numpy as np
import pytest
import torch
from pydantic import ValidationError

from allsight.config import ConfigError, Mixture, build, dump
from allsight.models import MODELS, Classifier, Model, MultiHead, Parts, TaskModel, num_parameters
from allsight.tasks import TASKS, Classification, SemanticSegmentation, Task, build_tasks
from allsight.types import Batch, Sample


class Bare(Task):
    """A task that overrides nothing."""


class BareModel(TaskModel):
    """A model that overrides nothing."""


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("reader", ("train",)),
        ("collate", ([],)),
        ("head", ((),)),
        ("cast", (Batch("t", (), {}),)),
        ("loss", (None, Batch("t", (), {}))),
        ("decode", (None, Batch("t", (), {}))),
        ("truth", (Batch("t", (), {}),)),
        ("metric", ()),
        ("main_metric", ()),
    ],
)
def test_what_a_task_does_not_offer_says_which_task_and_what(method, arguments):
    with pytest.raises(NotImplementedError, match=r"^Bare "):
        getattr(Bare(Bare.Config()), method)(*arguments)


def test_a_task_that_says_nothing_transforms_and_mixes_nothing():
    task, rng = Bare(Bare.Config(), name="bare"), np.random.default_rng(0)
    sample = Sample("a", {})
    assert task.transform("train")(sample, rng) is sample
    samples = [sample, sample]
    assert task.mix(samples, rng) is samples
    assert task.counts(Batch("bare", (), {})) == {}
    assert task.classes == ()


@pytest.mark.parametrize("family", [TASKS, MODELS])
def test_every_name_in_a_table_leads_to_its_class_and_back(family):
    for kind in family.table:
        owner = family.find(kind)
        assert family.kind_of(owner) == kind
        assert owner.Config.of is owner


@pytest.mark.parametrize("share", [-0.1, 0.0, (), ((0, 0.0), (10, 0.0)), ((0, -1.0), (5, 2.0))])
def test_a_share_must_be_positive_somewhere_and_negative_nowhere(share):
    with pytest.raises(ConfigError, match="share"):
        Bare.Config(share=share)


@pytest.mark.parametrize("share", [0.5, 2.0, ((0, 0.0), (10, 1.0))])
def test_shares_may_be_numbers_or_knots(share):
    assert Bare.Config(share=share).share == share


def test_settings_are_frozen_and_unknown_ones_are_refused_with_a_hint():
    config = Classification.Config()
    with pytest.raises(ValidationError):
        config.size_px = 3
    with pytest.raises(ConfigError, match="did you mean 'label_smoothing'"):
        Classification.Config(lable_smoothing=0.1)


def test_tasks_are_built_in_the_order_of_the_mixture_with_names_and_classes(tmp_path):
    mixture = Mixture(b=Classification.Config(), a=SemanticSegmentation.Config())
    tasks = build_tasks(mixture, tmp_path, {"b": ("x", "y")})
    assert list(tasks) == ["b", "a"]
    assert [task.name for task in tasks.values()] == ["b", "a"]
    assert tasks["b"].classes == ("x", "y")
    assert tasks["a"].root == tmp_path


def test_a_field_for_any_model_takes_plain_models_and_task_models():
    for config in (Classifier.Config.variant("nano", num_classes=2), MultiHead.Config.model_construct()):
        assert isinstance(config, Model.Config)
    tree = dump(Classifier.Config.variant("nano", num_classes=3))
    again = build(Model.Config, tree)
    assert again.num_classes == 3
    assert type(again).of is Classifier


def test_a_model_must_say_its_kind():
    with pytest.raises(
        ConfigError, match=r"model.kind: required; one of bevformer, classifier, m3i, multi_head, parts"
    ):
        build(Model.Config, {}, path="model")


def test_a_model_that_does_nothing_says_so():
    with pytest.raises(NotImplementedError, match="BareModel has no forward"):
        BareModel(BareModel.Config(), {})(Batch("t", (), {}))
    assert BareModel(BareModel.Config(), {}).after_step(0) is None


def test_parameters_are_counted_once_and_frozen_ones_only_on_request():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    b.weight = a.weight
    a.bias.requires_grad_(False)
    both = torch.nn.ModuleList([a, b])
    assert num_parameters(both) == 6 + 2 + 2
    assert num_parameters(both, trainable=True) == 6 + 2


def test_parts_are_a_task_model():
    assert issubclass(Parts, TaskModel)
