"""The classifier: official numbers, sizes and names, both heads, weights in and out."""

import itertools
import json
import os
from inspect import unwrap
from pathlib import Path

import pytest
import torch

from allsight.backbones import InternImage
from allsight.backbones import internimage_layouts as layouts
from allsight.config import ConfigError, build, dump
from allsight.models import Classifier
from allsight.models.base import model_for_tasks
from allsight.models.head_rows import select_classes
from allsight.types import Batch, CheckpointError
from allsight.weights import open_weights

# Parameters with 1000 classes, with 21841, and of the backbone alone.
SIZES = {
    "tiny": (29_918_424, 45_945_153, 28_754_672),
    "small": (50_079_880, 70_108_081, 48_502_560),
    "base": (97_461_832, 125_492_977, 94_909_920),
    "large": (223_334_810, 263_370_371, 218_952_370),
    "xlarge": (334_819_780, 382_858_285, 328_971_228),
    "huge": (1_089_636_760, 1_105_663_489, 1_073_122_480),
    "giant": (3_076_373_352, 3_092_400_081, 3_052_781_184),
}
LIMITS = {"f64": (1e-9, 1e-8), "f32": (2e-5, 5e-4)}
SMALL = InternImage.Config(channels=8, depths=(1, 1, 1, 1), groups=(1, 2, 4, 8))
HUGE_LIKE = InternImage.Config(
    channels=16,
    depths=(1, 1, 2, 1),
    groups=(1, 2, 4, 8),
    block_norm="res_post",
    dw_kernel_size=5,
    center_feature_scale=True,
    third_stage_norm_after=(1,),
)


def relative(actual, expected):
    return float((actual - expected).detach().norm() / expected.norm().clamp_min(1e-300))


def on_meta(name, **changes):
    with torch.device("meta"):
        return Classifier(Classifier.Config.variant(name, **changes))


def classifier(head="conv", backbone=SMALL, classes=5):
    torch.manual_seed(0)
    return Classifier(Classifier.Config(backbone=backbone, num_classes=classes, head=head))


def cases():
    """Names of the official networks at hand."""
    folder = Path(os.environ.get("ALLSIGHT_PARITY", "")) / "internimage"
    return sorted(f.stem for f in folder.glob("[a-i]_*.json")) or ["(no ALLSIGHT_PARITY)"]


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", cases())
def test_network_matches_the_official_one(parity, case, precision):
    """Logits, maps, gradients and running statistics of whole networks made by OpenGVLab/InternImage."""
    about, tensors = parity(f"internimage/{case}")
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    forward, gradient = LIMITS[precision]
    config = Classifier.Config.from_official_args(about["constructor"])
    prefix = "state_dict."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def run(loss_of):
        """One fresh network, forward and backward; train mode changes its buffers."""
        model = Classifier.from_official(state, config).to(dtype).train(about["mode"] == "train")
        assert sum(p.numel() for p in model.parameters()) == about["parameter_count"]
        images = tensors["input"].to(dtype, copy=True).requires_grad_()
        loss_of(model, images).backward()
        for module in model.parameters():
            module.data = torch.zeros_like(module) if module.grad is None else module.grad
        # With every weight replaced by its gradient, the official names give the gradients.
        return model.official_state_dict() | {"input": images.grad}

    def expect(actual, name, limit):
        assert relative(actual, tensors[name].to(dtype)) < limit, name

    def loss_of_logits(model, images):
        logits = model(images)
        expect(logits, f"{precision}.logits", forward)
        state_now = model.official_state_dict()
        for name in tensors:
            if name.startswith(f"{precision}.after_train_step_forward."):
                key = name.removeprefix(f"{precision}.after_train_step_forward.")
                expect(state_now[key].to(dtype), name, forward)
        return (logits * tensors["loss_weight.logits"].to(dtype)).sum()

    def loss_of_maps(model, images):
        maps = model.backbone(images)
        for i, feature in enumerate(maps):
            expect(feature, f"{precision}.feat{i}", forward)
        return sum((f * tensors[f"loss_weight.feat{i}"].to(dtype)).sum() for i, f in enumerate(maps))

    for what, loss_of in (("logits", loss_of_logits), ("feats", loss_of_maps)):
        gradients = run(loss_of)
        for key in (*about["gradient_keys"], "input"):
            if f"f64.grad_{what}.{key}" in tensors:
                expect(gradients[key], f"f64.grad_{what}.{key}", gradient)


@pytest.mark.parametrize(("variant", "letter"), [("tiny", "t"), ("huge", "h")])
@pytest.mark.skipif("ALLSIGHT_PARITY" not in os.environ, reason="ALLSIGHT_PARITY is not set")
def test_official_names_and_shapes_are_those_of_the_published_networks(variant, letter):
    file = Path(os.environ["ALLSIGHT_PARITY"]) / "internimage" / f"keys_{letter}.json"
    about = json.loads(file.read_text())
    ours = {name: list(tensor.shape) for name, tensor in on_meta(variant).official_state_dict().items()}
    assert ours == about["state_dict"]


@pytest.mark.parametrize("variant", SIZES)
def test_variant_has_its_published_size(variant):
    def size(module):
        return sum(p.numel() for p in module.parameters())

    model = on_meta(variant)
    with torch.device("meta"):
        larger = torch.nn.Linear(model.head.in_features, 21841)
    assert (size(model), size(model) - size(model.head) + size(larger), size(model.backbone)) == SIZES[
        variant
    ]


@pytest.mark.parametrize("variant", Classifier.variants)
def test_config_of_every_variant_round_trips_through_plain_data(variant):
    config = Classifier.Config.variant(variant, num_classes=7)
    assert build(Classifier.Config, dump(config)) == config


@pytest.mark.parametrize(("head", "backbone"), [("conv", SMALL), ("attention", HUGE_LIKE)])
def test_gradients_reach_every_parameter(head, backbone):
    model = classifier(head, backbone).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_logits_and_maps_of_any_size():
    model = classifier().eval()
    images = torch.randint(0, 256, (2, 3, 45, 33), dtype=torch.uint8)
    assert model(images).shape == (2, 5)
    maps = model.backbone(images)
    assert [m.shape[1] for m in maps] == [spec.channels for spec in model.feature_specs]


def test_without_classes_pooled_features_come_out():
    assert classifier(classes=0).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 96)


def test_attention_head_refuses_sizes_it_cannot_pair():
    model = classifier("attention", HUGE_LIKE).eval()
    with pytest.raises(ValueError, match=r"images: the attention head needs sides divisible by 32"):
        model(torch.randn(1, 3, 40, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(backbone=dict(norm="batch")), "head: 'attention' needs a backbone with norm='layer'"),
        (dict(backbone=dict(out_stages=(0, 3))), "head: 'attention' needs the last two stages"),
    ],
)
def test_attention_head_refuses_backbones_it_cannot_serve(changes, message):
    with pytest.raises(ConfigError, match=message):
        Classifier.Config(backbone=InternImage.Config(**changes["backbone"]), head="attention")


@pytest.mark.parametrize(("head", "backbone"), [("conv", SMALL), ("attention", HUGE_LIKE)])
@pytest.mark.parametrize("classes", [0, 5])
def test_saved_weights_come_back(tmp_path, head, backbone, classes):
    model = classifier(head, backbone, classes).eval()
    model.save_official(tmp_path / "weights.pth")
    again = Classifier.from_official(tmp_path / "weights.pth", model.config).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(images), model(images))
    assert len(again.load_report.matched) == len(model.state_dict())


def test_variant_head_and_classes_are_recognised():
    nano = classifier(backbone=InternImage.Config.variant("nano"), classes=11)
    weights = {f"module.{name}": tensor for name, tensor in nano.official_state_dict().items()}
    assert Classifier.from_official({"model": weights}).config == nano.config


def test_weights_of_a_bare_backbone_are_refused_with_advice():
    weights = InternImage(InternImage.Config.variant("nano")).official_state_dict()
    with pytest.raises(CheckpointError, match="neither head; load them as a backbone"):
        Classifier.from_official(weights)


def test_weights_of_another_number_of_classes_are_refused():
    model = classifier()
    config = model.config.model_copy(update={"num_classes": 6})
    with pytest.raises(CheckpointError, match=r"head.weight has 5 classes, the config has 6; choose"):
        Classifier.from_official(model.official_state_dict(), config)


def test_official_arguments_choose_head_width_and_classes():
    config = Classifier.Config.from_official_args(
        dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], num_classes=9, cls_scale=2.0)
    )
    assert (config.num_classes, config.head, config.head_ratio) == (9, "conv", 2.0)
    assert Classifier.Config.from_official_args({"USE_CLIP_PROJECTOR": True}).head == "attention"
    with pytest.raises(ConfigError, match="use_clip_projector does not work with norm_layer BN"):
        Classifier.Config.from_official_args(dict(use_clip_projector=True, norm_layer="BN"))


class Question:
    """What a classifier asks of a classification task."""

    num_classes = 5

    def head(self, features):
        raise NotImplementedError

    def cast(self, batch):
        raise NotImplementedError


def test_as_the_model_of_one_task_it_gives_logits_by_name():
    model = model_for_tasks(classifier().config, {"toys": Question()}).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    outputs, state = model(Batch(task="toys", ids=("a", "b"), inputs={"image": images}))
    assert torch.equal(outputs["logits"], model.classifier(images))
    assert state is None
    with pytest.raises(ValueError, match=r"task 'toys': the classifier expects .*got inputs \['video'\]"):
        model(Batch(task="toys", ids=("a",), inputs={"video": images}))
    with pytest.raises(ValueError, match="expects batches of 'toys'"):
        model(Batch(task="cats", ids=("a", "b"), inputs={"image": images}))


def test_tasks_it_cannot_serve_are_refused():
    config = classifier().config
    with pytest.raises(ConfigError, match=r"a classifier serves one task, got a, b; .*multi_head"):
        model_for_tasks(config, {"a": Question(), "b": Question()})
    with pytest.raises(ConfigError, match=r"model\.num_classes: expected 5 as task 'a' has, got 6"):
        model_for_tasks(config.model_copy(update={"num_classes": 6}), {"a": Question()})


def test_published_weights_are_translated_for_training_and_own_ones_left_alone():
    published = classifier()
    model = model_for_tasks(published.config, {"toys": Question()})
    model.load_state_dict(model.own_weights(published.official_state_dict()))
    assert torch.equal(model.classifier.head.weight, published.head.weight)
    own = model.state_dict()
    assert model.own_weights(own).keys() == own.keys()


def test_averaged_weights_of_a_training_file_are_taken_when_asked_for(tmp_path):
    raw, averaged = classifier().official_state_dict(), classifier(classes=5).official_state_dict()
    averaged["head.bias"] = torch.arange(5.0)
    torch.save({"model": raw, "model_ema": averaged, "epoch": 3}, tmp_path / "w.pth")
    assert not Classifier.from_official(tmp_path / "w.pth").head.bias.any()
    assert Classifier.from_official(tmp_path / "w.pth", ema=True).head.bias.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("head", ["conv", "attention"])
def test_any_tensor_lost_or_of_another_shape_is_refused_in_a_line(head):
    weights = classifier(head, HUGE_LIKE if head == "attention" else SMALL).official_state_dict()
    tried = [name for name in weights if "levels." not in name or (head == "conv" and "levels.0." in name)]
    shapes = itertools.cycle([(), (0,), (7,), (1, 7), (2, 3, 0, 1)])
    for name, shape in zip(tried, shapes, strict=False):
        lost = {k: v for k, v in weights.items() if k != name}
        for changed in (lost, lost | {name: torch.zeros(shape)}):
            if changed.get(name, torch.empty(9, 9)).shape != weights[name].shape:
                with pytest.raises(CheckpointError) as caught:
                    Classifier.from_official(changed)
                assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_file", [True, False])
def test_classes_are_chosen_by_a_list(tmp_path, as_file):
    model = classifier(classes=9)
    torch.nn.init.normal_(model.head.bias)
    rows = [7, 0, 3]
    (tmp_path / "map.txt").write_text("7\n0\n3\n")
    weights = model.official_state_dict()
    small = Classifier.from_official(weights, head_rows=tmp_path / "map.txt" if as_file else rows)
    assert small.config.num_classes == 3
    assert torch.equal(small.head.weight, model.head.weight[rows])
    assert torch.equal(small.head.bias, model.head.bias[rows])
    assert "head_rows: 3 of 9 classes kept" in small.load_report.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([9], "has 9; expected numbers from 0 to 4"),
        ([-1], "has -1; expected"),
        ([], "is empty"),
        ([True, False], "got True"),
        ("absent.txt", "no such file; expected one class number a line"),
        ("words.txt", "expected one class number a line"),
    ],
)
def test_lists_of_classes_that_do_not_fit_are_refused(tmp_path, monkeypatch, rows, message):
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("tench\n")
    with pytest.raises(CheckpointError, match=message):
        Classifier.from_official(classifier().official_state_dict(), head_rows=rows)


@pytest.mark.parametrize("rows", [[3, "x"], [1.5], 3.5])
def test_what_are_no_numbers_of_classes_is_refused(rows):
    found = layouts.find(open_weights(classifier().official_state_dict()))
    with pytest.raises(CheckpointError, match="expected numbers of classes, or a file with one a line, got"):
        unwrap(select_classes)(found, rows)


def test_a_classifier_without_classes_leaves_the_head_out():
    model = classifier()
    config = model.config.model_copy(update={"num_classes": 0})
    loaded = Classifier.from_official(model.official_state_dict(), config)
    assert loaded.load_report.skipped == ("head.weight", "head.bias")


def test_a_run_refuses_weights_of_another_network():
    trainable = model_for_tasks(classifier(classes=5).config, {"q": Question()})
    with pytest.raises(CheckpointError, match=r"no InternImage weights.*a ResNet"):
        trainable.own_weights({"layer1.0.conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("form", ["official", "hugging face", "wrapped", "own"])
def test_a_run_takes_every_published_form(form):
    model = classifier(classes=5)
    trainable = model_for_tasks(model.config, {"q": Question()})
    weights = {
        "official": model.official_state_dict,
        "hugging face": lambda: {f"model.{k}": v for k, v in model.official_state_dict().items()},
        "wrapped": lambda: {f"module.{k}": v for k, v in model.official_state_dict().items()},
        "own": lambda: {f"classifier.{k}": v for k, v in model.state_dict().items()},
    }[form]()
    trainable.load_state_dict(trainable.own_weights(weights))
    assert all(torch.equal(t, model.state_dict()[k]) for k, t in trainable.classifier.state_dict().items())
