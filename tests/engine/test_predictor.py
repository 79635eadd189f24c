"""Weights in, answers out: which weights are taken, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import toys
from PIL import Image as PillowImage
from spike_run import spike_run
from torch import nn

from allsight.backbones import InternImage
from allsight.config import ConfigError, Mixture, replace
from allsight.engine.checkpoint import list_checkpoints, write_best
from allsight.engine.config import EvalConfig, RunConfig, StartConfig
from allsight.engine.optim import AdamW
from allsight.engine.predictor import load
from allsight.engine.run_folder import read_run_config
from allsight.engine.schedule import Constant
from allsight.engine.starting import start_from
from allsight.engine.trainer import Trainer
from allsight.engine.training_state import load_weights
from allsight.models import Classifier, MultiHead
from allsight.tasks import Classification
from allsight.types import CheckpointError
from allsight.weights import Mismatch, write_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the colour task with averaged weights."""
    config = RunConfig(
        name="dots",
        model=MultiHead.Config(backbone=toys.ToyBackbone.Config()),
        tasks=Mixture(dots=toys.ToyDots.Config(batch_size=12)),
        optim=AdamW.Config(lr=5e-3, ema_decay=0.9),
        schedule=Constant.Config(steps=60),
        eval=EvalConfig(every_steps=20, pictures=4),
    )
    folder = tmp_path_factory.mktemp("runs") / "dots"
    trainer = Trainer(config, folder=folder)
    trainer.fit()
    trainer.close()
    return folder


def picture(colour, size=16):
    """A picture as the task has them: grey noise with dots of a colour."""
    index = toys.DotsReader.classes.index(colour)
    return toys.DotsReader(3, size, 5)[index].image.pixels.permute(1, 2, 0).numpy()


def test_all_kinds_of_pictures_give_the_same_answer(run, tmp_path):
    predictor = load(run, trust=True)
    array = picture("green")
    PillowImage.fromarray(array).save(tmp_path / "green.png")
    forms = [
        array,
        PillowImage.fromarray(array),
        torch.from_numpy(array).permute(2, 0, 1),
        tmp_path / "green.png",
    ]
    answers = [predictor.predict(form) for form in forms]
    assert answers[0].top(1)[0][0] == "green"
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.scores, answers[0].scores)
    assert json.dumps(answers[0].to_json())


def test_many_pictures_come_back_in_order(run):
    predictor = load(run, trust=True)
    names = ["red", "blue", "green", "blue"] * 6
    answers = list(predictor.predict_many(picture(name, 16 + 8 * (i % 2)) for i, name in enumerate(names)))
    assert [answer.top(1)[0][0] for answer in answers] == names


def test_evaluation_of_the_best_weights_equals_that_of_the_run(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    best = max(e["values"]["main"] for e in events if e["kind"] == "eval" and e["task"] is None)
    assert load(run, trust=True).evaluate()["dots/top1"] == pytest.approx(best)


def test_choice_of_weights(run):
    def first(which):
        return next(iter(load(run, weights=which, trust=True).model.parameters())).detach().clone()

    raw, last, random = first("raw"), first("last"), first("random")
    assert not torch.equal(raw, last)
    assert not torch.equal(raw, random)
    write_best(run / "checkpoints", list_checkpoints(run / "checkpoints")[0].step, "main", 1.0)
    assert not torch.equal(first("best"), last)


def test_a_run_folder_with_foreign_code_needs_trust(run, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "toys")
    with pytest.raises(ConfigError, match=r"resolved\.yaml: config\.model\.backbone\.kind: .*--trust"):
        load(run)


def test_a_configuration_alone_has_no_weights():
    config = spike_run()
    with pytest.raises(ConfigError, match="weights"):
        load(config)
    assert load(config, weights="random").weights == "random"


def test_several_tasks_must_be_named():
    predictor = load(spike_run(), weights="random")
    with pytest.raises(ConfigError, match="several tasks, name one of: dots, captions, drive"):
        predictor.predict(picture("red"))
    with pytest.raises(ConfigError, match="no task 'dot'; did you mean 'dots'"):
        predictor.predict(picture("red"), task="dot")
    assert predictor.predict(picture("red"), task="dots").task == "dots"


def test_a_run_without_whole_checkpoint_is_refused(run, tmp_path):
    (tmp_path / "resolved.yaml").write_text((run / "resolved.yaml").read_text())
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load(tmp_path, trust=True)
    with pytest.raises(ConfigError, match="not a run folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", '{"dots": 3}'])
def test_a_damaged_file_of_class_names_is_refused_by_name(run, tmp_path, text):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "classes.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"classes\.json: expected"):
        load(folder, trust=True)


def test_a_damaged_configuration_is_refused_by_name(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "resolved.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"resolved\.yaml: cannot be read"):
        load(folder, trust=True)


def test_published_classifier_weights_are_taken_by_a_recipe(tmp_path):
    config = Classifier.Config(backbone=InternImage.Config.variant("nano"), num_classes=3)
    torch.manual_seed(1)
    classifier = Classifier(config).eval()
    classifier.save_official(tmp_path / "official.pth")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n")
    run = RunConfig(
        name="official",
        model=config,
        tasks=Mixture(things=Classification.Config(data="imagefolder:nowhere", num_classes=3, size_px=64)),
        schedule=Constant.Config(steps=1),
    )
    predictor = load(run, weights=tmp_path / "official.pth", classes=names)
    answer = predictor.predict(picture("red", 64))
    assert {name for name, _ in answer.top(3)} == {"ant", "bee", "cat"}
    for some in (("ant", "bee"), ("ant", "bee", "cat", "dog")):
        with pytest.raises(ConfigError, match=f"--classes: {len(some)} names for .* which has 3 classes"):
            load(run, weights=tmp_path / "official.pth", classes={"things": some})
    other = replace(run, {"model.num_classes": 4})
    with pytest.raises((CheckpointError, ConfigError), match=r"head|classes"):
        load(other, weights=tmp_path / "official.pth")


def small_run(**changes):
    """A recipe of a small classifier of 3 things, and the classifier's weights under official names."""
    model = Classifier.Config(backbone=InternImage.Config.variant("nano"), num_classes=3)
    run = RunConfig(
        name="official",
        model=model,
        tasks=Mixture(things=Classification.Config(data="imagefolder:nowhere", num_classes=3, size_px=64)),
        schedule=Constant.Config(steps=1),
    )
    return run, Classifier(replace(model, changes) if changes else model).official_state_dict()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_with_infinities_are_refused_by_name(run, tmp_path, value, whole):
    """Those of a file, published or own, and those of a run that has diverged; also to start from."""
    recipe, weights = small_run()
    if whole:
        recipe, weights = read_run_config(run, trust=True), load(run, "raw", trust=True).model.state_dict()
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], value, dtype=torch.float64)
    write_weights(weights, tmp_path / "w.safetensors")
    said = r"w\.safetensors: 1 tensors \(float64\) hold infinities or NaN: .*(conv1|first)\.weight$"
    with pytest.raises(CheckpointError, match=said):
        load(run if whole else recipe, weights=tmp_path / "w.safetensors", trust=True)
    model = load(recipe, weights="random").model
    with pytest.raises(CheckpointError, match=said):
        start_from(model, StartConfig(weights=str(tmp_path / "w.safetensors")), tell=print)


def test_what_a_new_model_has_full_of_nan_may_hold_it():
    module = nn.BatchNorm1d(2)
    module.running_mean.fill_(float("nan"))
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    load_weights(module, weights, where="w")
    module.running_mean.zero_()
    with pytest.raises(CheckpointError, match=r"w: 1 tensors .*: running_mean"):
        load_weights(module, weights, where="w")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"backbone.depths": (1, 1, 4, 1)},
            r"InternImage nearest to nano \(.*\), the model is InternImage nano",
        ),
        (
            {"backbone": InternImage.Config.variant("micro")},
            r"InternImage micro \(.*\), the model is InternImage",
        ),
        ({"num_classes": 7}, "the weights have 7 classes, the model 3; "),
        ({"head": "attention"}, "the weights have the head 'attention', the model 'conv'; "),
        ({"backbone.block_norm": "res_post"}, "the weights have block_norm=res_post; "),
        (None, "the weights are the backbone of Mask R-CNN, without a classification head; "),
    ],
)
def test_why_weights_do_not_fit_is_said_before_names_in_groups(tmp_path, changes, said):
    recipe, weights = small_run(**(changes or {}))
    if changes is None:
        weights = {f"backbone.{name}": t for name, t in weights.items() if "head" not in name}
        weights["roi_head.mask_head.convs.0.conv.weight"] = torch.zeros(1)
    write_weights(weights, tmp_path / "w.safetensors")
    with pytest.raises(
        Mismatch, match=r"w\.safetensors: weights do not fit the model: the weights "
    ) as caught:
        load(recipe, weights=tmp_path / "w.safetensors")
    error = str(caught.value)
    assert re.search(said, error) and re.search("[0-9]+ (missing|unexpected|of another shape): ", error)
    assert len(error) < 2000 and "\n" not in error
    model = load(recipe, weights="random").model
    with pytest.raises(CheckpointError, match=said + ".*; parts that are to start anew go into start.fresh"):
        start_from(model, StartConfig(weights=str(tmp_path / "w.safetensors")), tell=print)


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"rot\n\nblau\r\ngelb\n"), ("a.json", b'["rot", "blau", "gelb"]')]
)
def test_class_names_come_from_lines_or_a_json_list(run, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    predictor = load(run, classes=tmp_path / name, trust=True)
    assert predictor.tasks["dots"].given_classes == ("rot", "blau", "gelb")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected one class name a line"),
        (b"\xff\xfe\x80", "cannot be read"),
        (b"one\ntwo\n", "2 names for task 'dots', which has 3 classes"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(run, tmp_path, content, expected):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load(run, classes=tmp_path / "names.txt", trust=True)


def test_class_names_of_another_task_are_refused(run):
    with pytest.raises(ConfigError, match="no task 'dot'; did you mean 'dots'"):
        load(run, classes={"dot": ("a", "b", "c")}, trust=True)


def test_a_device_that_is_not_there_is_refused(run):
    for device in ("warp", "cuda:63"):
        with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used here"):
            load(run, device=device, trust=True)


def test_one_path_is_not_taken_for_many_pictures(run):
    with pytest.raises(ConfigError, match="use predict for one"):
        next(load(run, trust=True).predict_many("green.png"))


def test_weights_that_are_neither_a_choice_nor_a_file_are_refused(run):
    with pytest.raises(
        CheckpointError, match="bset: no such file; expected best, last, raw, random, or a file"
    ):
        load(run, weights="bset", trust=True)


def test_damaged_newer_weights_are_named(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    older, newer = list_checkpoints(folder / "checkpoints")[-2:]
    (newer.path / "COMPLETE").unlink()
    predictor = load(folder, weights="last", trust=True)
    assert predictor.weights.startswith(older.path.name)
    assert len(predictor.notes) == 1 and newer.path.name in predictor.notes[0]
