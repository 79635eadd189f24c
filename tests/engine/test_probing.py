"""Features of a backbone on the samples of a task, and what probes make of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from allsight.backbones import InternImage
from allsight.config import ConfigError, Mixture, replace
from allsight.data.text import Tokenizer
from allsight.engine.config import DataConfig, EvalConfig, ProbeConfig, RunConfig, StartConfig
from allsight.engine.probing import Extraction, backbone_features, features_of, probe, zero_shot
from allsight.engine.schedule import Cosine
from allsight.engine.starting import start_from
from allsight.engine.trainer import Trainer
from allsight.models import M3I, Classifier, MultiHead, model_for_tasks
from allsight.models.features import backbone_of
from allsight.models.m3i import Mixer, cases
from allsight.tasks import Classification
from allsight.tasks.pretraining import Pretraining
from allsight.types import CheckpointError, DataError
from allsight.view.record import read_run
from allsight.view.report import render
from allsight.weights import write_weights

SMALL = InternImage.Config(channels=8, depths=(1, 1), groups=(1, 2), out_stages=(1,))
COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 60), "red": (220, 30, 30)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three colours with noise: 8 of each to train, 3 to judge."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, colour in COLOURS.items():
            place = root / "colours" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                noisy = np.array(colour) + rng.integers(-20, 20, (16, 16, 3))
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")
    return root


def colours(folder, **settings):
    config = Classification.Config(data="imagefolder:colours", size_px=16, eval_crop=1.0, **settings)
    return Classification(config, name="colours", root=folder)


def backbone():
    torch.manual_seed(0)
    return InternImage(SMALL)


def test_features_are_the_mean_of_the_coarsest_map_in_order(folder):
    net, task = backbone().train(), colours(folder, flip=1.0)
    found, corrupt = features_of(backbone_features(net), task, "train", Extraction(batch_size=5))
    assert found.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 and corrupt == ()
    assert net.training
    picture = torch.tensor(np.array(Image.open(folder / "colours/train/green/0.png"))).permute(2, 0, 1)
    with torch.no_grad():
        expected = net.eval()(picture[None])[-1].mean(dim=(2, 3))[0]
    torch.testing.assert_close(found.vectors[8], expected)


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_probes_tell_colours_apart_with_random_weights(folder, kind):
    score = probe(backbone(), colours(folder), kind, neighbours=5)
    assert score.values["top1"] == 1.0
    assert (score.train_samples, score.val_samples) == (24, 9)
    assert probe(backbone(), colours(folder), kind, neighbours=5).values == score.values


def test_a_part_of_the_training_pictures_is_spread_over_all(folder):
    how = Extraction(max_train=12, max_val=3)
    score = probe(backbone(), colours(folder), "knn", neighbours=5, how=how)
    assert (score.train_samples, score.val_samples, score.values["top1"]) == (12, 3, 1.0)


PAIRS = {"blue": (0.0, 0.0, 1.0), "green": (0.0, 1.0, 0.0), "red": (1.0, 0.0, 0.0)}


class Named(torch.nn.Module):
    """Puts pictures at their mean colour, and captions at the colour whose word they hold."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def embed_pictures(self, images):
        return images.float().mean(dim=(2, 3))

    def embed_captions(self, tokens, is_token):
        said = [self.tokenizer.decode(row[keep]) for row, keep in zip(tokens, is_token, strict=True)]
        assert all(text.startswith("a photo of a ") for text in said)
        return torch.tensor([PAIRS[text.split()[-1].replace("</s>", "")] for text in said])


def test_classes_are_found_by_their_names(folder):
    tokenizer = Tokenizer.train([f"a photo of a {name}" for name in COLOURS], vocab_size=270)
    score = zero_shot(Named(tokenizer), colours(folder), tokenizer)
    assert score.values["top1"] == 1.0 and (score.train_samples, score.val_samples) == (0, 9)
    with pytest.raises(ConfigError, match="Linear does not put pictures and captions into one space"):
        zero_shot(torch.nn.Linear(1, 1), colours(folder), tokenizer)


def m3i_run(folder, **changes):
    model = M3I.Config(
        backbone=SMALL,
        mixer=Mixer(pictures=2, block_px=8),
        targets=Mixture(view=cases.dense_target(((0, 1),), decoder=DECODER)),
    )
    task = Pretraining.Config(
        data="imagefolder:colours", size_px=16, batch_size=4, group_size=2, labels="ignore"
    )
    config = RunConfig(
        name="m3i",
        model=model,
        tasks=Mixture(colours=task),
        data=DataConfig(root=str(folder)),
        schedule=Cosine.Config(steps=3),
        eval=EvalConfig(every_steps=2, pictures=0, probes=(ProbeConfig(max_train=21),)),
    )
    return replace(config, changes)


DECODER = {"channels": 8, "heads": 1, "projector_blocks": 0, "predictor_blocks": 1}


def test_a_run_is_probed_at_its_start_and_with_each_evaluation(folder, tmp_path):
    plain = Trainer(m3i_run(folder, **{"eval.probes": ()}))
    trainer = Trainer(m3i_run(folder), folder=tmp_path / "run")
    losses = [[step.loss for step in each] for each in (plain, trainer)]
    plain.close()
    trainer.close()
    assert losses[0] == losses[1]
    record = read_run(tmp_path / "run")
    assert [event["step"] for event in record.probes] == [0, 2, 3]
    assert all(event["values"]["train_samples"] == 21 for event in record.probes)
    assert record.probes[0]["text"] == "knn on imagefolder:colours, weights at the start"
    page = render(record)
    assert "top1 of probes" in page and "target_std" in page
    assert record.monitors["view/loss"].steps == [0]
    # The backbone that learns, not its slow copy.
    assert backbone_of(trainer.model) is trainer.model.encoder.backbone
    assert trainer.model.config.momentum.decay(3, trainer.model._run_steps) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.probes": (ProbeConfig(kind="zero_shot"),)}, r"probes\[0\]: zero_shot reads the names"),
        ({"eval.probes": (ProbeConfig(data="imagefolder:nothing"),)}, "nothing"),
    ],
)
def test_probes_that_cannot_be_are_refused_before_the_first_step(folder, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        Trainer(m3i_run(folder, **changes))


def test_the_backbone_of_a_run_starts_another_model(folder, tmp_path):
    trainer = Trainer(m3i_run(folder, **{"eval.probes": (), "schedule.steps": 1}), folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    task = {"colours": colours(folder)}
    of_run = StartConfig(weights=str(tmp_path / "run"), part="backbone", part_in_weights="encoder.backbone")

    def started(start, backbone=SMALL):
        model = model_for_tasks(MultiHead.Config(backbone=backbone), task)
        head = model.heads["colours"].linear.weight.clone()
        said = start_from(model, start, tell=print)
        assert torch.equal(model.heads["colours"].linear.weight, head) and said.endswith("the rest anew")
        return model.backbone.state_dict()

    source = trainer.model.encoder.backbone.state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in started(of_run).items())
    alone = tmp_path / "backbone.safetensors"
    write_weights(source, alone)
    plain = InternImage(SMALL)
    plain.load_state_dict(load_file(alone))
    found = started(replace(of_run, {"weights": str(alone)}))
    assert all(torch.equal(tensor, found[name]) for name, tensor in plain.state_dict().items())
    for changes, message in (
        ({"part_in_weights": ""}, "it could be encoder.backbone, momentum_encoder.backbone; name one"),
        ({"part_in_weights": "encoder.back"}, "holds nothing below 'encoder.back'"),
        ({"part": "trunk"}, "the model has nothing below 'trunk'"),
    ):
        with pytest.raises((ConfigError, CheckpointError), match=message):
            started(replace(of_run, changes))
    with pytest.raises(CheckpointError, match=r"missing: backbone\.stages\.0\.blocks\.1"):
        started(of_run, replace(SMALL, {"depths": (2, 1)}))
    with pytest.raises(ConfigError, match="expected fresh or part"):
        replace(of_run, {"fresh": ("heads",)})


def test_the_backbone_of_any_model_is_found(folder):
    task = {"colours": colours(folder)}
    for config in (MultiHead.Config(backbone=SMALL), Classifier.Config(backbone=SMALL, num_classes=3)):
        assert isinstance(backbone_of(model_for_tasks(config, task)), InternImage)
    with pytest.raises(ConfigError, match="Linear: expected one backbone in the model, found none"):
        backbone_of(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="found 0, 1"):
        backbone_of(torch.nn.ModuleList([backbone(), backbone()]))
