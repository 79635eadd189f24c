"""What factors on the learning rate do to a run: each parameter moves by its own, and runs can be cut."""

import json

import pytest
import torch
from data.toy_sets import imagefolder

from allsight.backbones import InternImage
from allsight.config import ConfigError, Mixture
from allsight.engine.config import CheckpointConfig, EvalConfig, RunConfig, StartConfig
from allsight.engine.optim import SGD, AdamW
from allsight.engine.parameter_groups import DCNRates, Groups
from allsight.engine.schedule import Cosine
from allsight.engine.trainer import Trainer
from allsight.models import Classifier, MultiHead
from allsight.tasks import Classification
from allsight.types import CheckpointError

GROUPS = Groups(layer_decay=0.5, dcn_lr_multiplier=DCNRates(offset=0.5), stage_lr=(0.5, 1, 1, 1, 2))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    imagefolder(root / "set")
    return root


def nano_run(root, optim, **changes) -> RunConfig:
    fields = {
        "name": "nano",
        "model": MultiHead.Config(backbone=InternImage.Config.variant("nano")),
        "tasks": Mixture(toys=Classification.Config(data="imagefolder:set", size_px=32, batch_size=2)),
        "optim": optim,
        "schedule": Cosine.Config(steps=4, warmup_steps=1),
        "eval": EvalConfig(pictures=0),
        "checkpoint": CheckpointConfig(every_steps=2),
    }
    config = RunConfig(**{**fields, **changes})
    return config.model_copy(update={"data": config.data.model_copy(update={"root": str(root)})})


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def first_steps(config):
    """How far each parameter moves in the first step."""
    trainer = Trainer(config)
    before = weights_of(trainer)
    next(iter(trainer))
    trainer.close()
    return trainer, {name: after - before[name] for name, after in weights_of(trainer).items()}


def test_each_parameter_moves_by_its_own_rate(pictures):
    plain = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    _, usual = first_steps(nano_run(pictures, SGD.Config(**plain)))
    trainer, scaled = first_steps(nano_run(pictures, SGD.Config(**plain, groups=GROUPS)))
    rates = {"heads.": 1.0, "backbone.stages.3.": 2.0, "backbone.stages.2.blocks.1.mlp": 0.5}
    rates |= {"backbone.stages.2.blocks.1.dcn.offset": 0.25, "backbone.stem.": 0.5**6}
    for start, rate in rates.items():
        names = [n for n in usual if n.startswith(start) and "dcn.offset" not in n.removeprefix(start)]
        assert names
        for name in names:
            torch.testing.assert_close(scaled[name], usual[name] * rate, rtol=1e-3, atol=2e-7)
    groups = trainer._updater.optimizer.param_groups
    assert len({group["lr"] / group["lr_scale"] for group in groups}) == 1


def test_a_run_with_many_groups_goes_on_bit_for_bit(pictures, tmp_path):
    optim = AdamW.Config(lr=1e-2, groups=GROUPS, ema_decay=0.9)
    config = nano_run(pictures, optim)
    whole = Trainer(config)
    for _ in whole:
        pass
    cut = Trainer(config, folder=tmp_path / "run")
    for result in cut:
        if result.number == 1:
            break
    cut.close()
    again = Trainer(config, folder=tmp_path / "run", resume=True)
    assert again.step == 2
    for _ in again:
        pass
    again.close()
    ours, theirs = weights_of(again), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert whole._updater.ema is not None and again._updater.ema is not None
    for name, average in whole._updater.ema.averages.items():
        assert torch.equal(again._updater.ema.averages[name], average), name


def test_the_run_folder_says_who_gets_which_rate(pictures, tmp_path):
    trainer = Trainer(nano_run(pictures, AdamW.Config(groups=GROUPS)), folder=tmp_path / "run")
    trainer.close()
    groups = json.loads((tmp_path / "run" / "parameters.json").read_text())
    named = {name: group for group in groups for name in group["parameters"]}
    assert set(named) == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert named["backbone.stem.conv1.weight"]["lr_scale"] == 0.5**6
    assert named["backbone.stem.conv1.bias"]["weight_decay"] == 0


def classifier_run(root, classes=3, **changes):
    model = Classifier.Config(backbone=InternImage.Config.variant("nano"), num_classes=classes)
    tasks = Mixture(
        toys=Classification.Config(data="imagefolder:set", size_px=32, batch_size=2, num_classes=classes)
    )
    return nano_run(root, AdamW.Config(), model=model, tasks=tasks, **changes)


def notes_of(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["kind"] == "note"]


def test_a_run_starts_from_published_weights_but_for_what_is_to_be_fresh(pictures, tmp_path):
    torch.manual_seed(7)
    source = Classifier(Classifier.Config(backbone=InternImage.Config.variant("nano"), num_classes=5))
    file = tmp_path / "published.safetensors"
    source.save_official(file)
    start = StartConfig(weights=str(file), fresh=("classifier.head",))
    trainer = Trainer(classifier_run(pictures, start=start), folder=tmp_path / "run")
    plain = Trainer(classifier_run(pictures))
    trainer.close()
    theirs = source.state_dict()
    for name, tensor in trainer.model.state_dict().items():
        inner = name.removeprefix("classifier.")
        if inner.startswith("head."):
            assert torch.equal(tensor, plain.model.state_dict()[name])
        else:
            assert torch.equal(tensor, theirs[inner]), name
    assert notes_of(tmp_path / "run") == [f"starts from {file}, classifier.head anew"]
    said = r"the weights have 5 classes, the model 3; .*head\.weight: .* to start anew go into start\.fresh"
    with pytest.raises(CheckpointError, match=said):
        Trainer(classifier_run(pictures, start=StartConfig(weights=str(file))))


def test_a_run_starts_from_the_averages_of_another_run(pictures, tmp_path):
    first = classifier_run(pictures).model_copy(update={"optim": AdamW.Config(lr=1e-2, ema_decay=0.5)})
    trainer = Trainer(first, folder=tmp_path / "first")
    trainer.fit()
    trainer.close()
    second = Trainer(classifier_run(pictures, start=StartConfig(weights=str(tmp_path / "first"))))
    assert trainer._updater.ema is not None
    state = second.model.state_dict()
    assert all(torch.equal(state[name], average) for name, average in trainer._updater.ema.averages.items())


def test_a_run_that_goes_on_needs_its_first_weights_no_more(pictures, tmp_path):
    source = Classifier(Classifier.Config(backbone=InternImage.Config.variant("nano"), num_classes=3))
    file = tmp_path / "published.pth"
    source.save_official(file)
    config = classifier_run(pictures, start=StartConfig(weights=str(file)))
    trainer = Trainer(config, folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    file.unlink()
    Trainer(config, folder=tmp_path / "run", resume=True).close()


def test_weights_that_are_not_there_are_named(pictures, tmp_path):
    for weights, said in {
        "none.pth": r"start\.weights: none\.pth: no such file or run folder; .*random",
        str(tmp_path): "no whole checkpoint",
    }.items():
        with pytest.raises((ConfigError, CheckpointError), match=said) as caught:
            Trainer(classifier_run(pictures, start=StartConfig(weights=weights)))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"fresh=\['head'\] needs weights"):
        StartConfig(fresh=("head",))
