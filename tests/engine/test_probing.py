"""Features of a backbone on the samples of a task, and what probes make of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from allsight.backbones import InternImage
from allsight.config import ConfigError
from allsight.engine.probing import Extraction, backbone_features, features_of, probe
from allsight.models import Classifier, MultiHead, model_for_tasks
from allsight.models.features import backbone_of
from allsight.tasks import Classification

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


def test_the_backbone_of_any_model_is_found(folder):
    task = {"colours": colours(folder)}
    for config in (MultiHead.Config(backbone=SMALL), Classifier.Config(backbone=SMALL, num_classes=3)):
        assert isinstance(backbone_of(model_for_tasks(config, task)), InternImage)
    with pytest.raises(ConfigError, match="Linear: expected one backbone in the model, found none"):
        backbone_of(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="found 0, 1"):
        backbone_of(torch.nn.ModuleList([backbone(), backbone()]))
