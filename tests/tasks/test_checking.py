"""The promises of every task: kept by those of allsight and by the toys, and noticed when they are broken."""

from pathlib import Path

import numpy as np
import pytest
import torch

from allsight.backbones import ViT
from allsight.config import Mixture, build
from allsight.config.base import import_file
from allsight.data.world import World, generate_world
from allsight.data.world.drives import Drives, generate_drives
from allsight.models import BEVFormer, Parts, model_for_tasks
from allsight.models.m3i import cases
from allsight.models.multi_head import MultiHead
from allsight.tasks import TASKS, BEVDetection, BEVSegmentation, Pretraining, Task, build_tasks
from allsight.tasks.checking import check_task
from allsight.tasks.checking.comparing import difference
from allsight.types import Batch, DataError, Sample

toys = import_file(Path(__file__).parents[1] / "contracts" / "toys.py")

SHIPPED = {
    "bev_detection": {
        "data": "nuscenes:drives",
        "hw_px": (32, 64),
        "streams": False,
        "head": {"queries": 50},
    },
    "bev_segmentation": {"data": "nuscenes:drives", "hw_px": (32, 64), "streams": False},
    "classification": {
        "data": "imagefolder:imagefolder",
        "size_px": 32,
        "mixup": 0.2,
        "cutmix": 0.2,
        "group_size": 2,
    },
    "pretraining": {"data": "imagefolder:imagefolder", "size_px": 32, "group_size": 2},
    "semantic_segmentation": {
        "data": "label_maps:label_maps",
        "crop_hw_px": (32, 32),
        "canvas_hw_px": (32, 32),
    },
}
"""Tasks of the table with settings that fit the generated world."""
WITH_TEXTS = {
    "captioning",
    "image_text_retrieval",
    "language",
    "masked_language",
    "text_classification",
    "text_retrieval",
    "video_classification",
    "video_text_retrieval",
    "vqa",
}
"""Those checked in `test_text_tasks.py`, with a model that reads their queries."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    config = World.Config(train=12, val=12, size_px=32, objects=(1, 2), clutter=0.0)
    root = generate_world(tmp_path_factory.mktemp("checking") / "world", config)
    generate_drives(root / "drives", Drives.Config(train=2, val=2, frames=3, hw_px=(32, 64)))
    return root


def model_of(task):
    """Outputs of a tiny model, for tasks whose head reads no feature maps of one picture; else None."""
    torch.manual_seed(0)
    if isinstance(task, Pretraining):
        net = ViT.Config(channels=16, depth=1, heads=2, patch_px=8)
        config = cases.supervised(net)
    elif isinstance(task, BEVDetection | BEVSegmentation):
        config = BEVFormer.Config.variant("micro")
    else:
        return None
    model = model_for_tasks(config, {task.name: task}).double().eval()
    return lambda batch: model(batch)[0]


def faults(findings):
    return [str(finding) for finding in findings if finding.problem]


def test_every_task_of_the_table_is_checked():
    assert set(SHIPPED) | WITH_TEXTS == set(TASKS.table)


@pytest.mark.parametrize("kind", SHIPPED)
def test_the_tasks_of_allsight_keep_their_promises(kind, world):
    config = build(Task.Config, {"kind": kind, **SHIPPED[kind]})
    task = config.build(name="checked", root=world)
    findings = list(check_task(task, model_of(task)))
    assert faults(findings) == []
    # Streams and queries are not theirs; all else was looked at.
    assert sum(bool(finding.skipped) for finding in findings) <= 3


@pytest.fixture(scope="module")
def toy_model():
    config = Parts.Config(
        parts=Mixture(
            heads=MultiHead.Config(backbone=toys.ToyBackbone.Config()),
            generalist=toys.ToyGeneralist.Config(),
            driver=toys.ToyDriver.Config(),
        ),
        route=Mixture(dots="heads", captions="generalist", drive="driver"),
    )
    mixture = Mixture(
        dots=toys.ToyDots.Config(), captions=toys.ToyCaptioning.Config(), drive=toys.ToyDrive.Config()
    )
    tasks = build_tasks(mixture, None)
    torch.manual_seed(0)
    return tasks, model_for_tasks(config, tasks).double()


@pytest.mark.parametrize("name", ["dots", "captions", "drive"])
def test_the_toys_keep_their_promises(name, toy_model):
    tasks, model = toy_model
    findings = list(check_task(tasks[name], lambda batch: model(batch)[0]))
    assert faults(findings) == []


def test_without_a_model_a_task_of_queries_is_checked_as_far_as_possible(toy_model):
    findings = list(check_task(toy_model[0]["captions"]))
    assert faults(findings) == []
    assert any("a model that reads queries is needed" in finding.skipped for finding in findings)


class Dots(toys.ToyDots):
    """Changes one thing for the worse: `WORSE` maps what must be noticed to (method, its replacement)."""

    class Config(toys.ToyDots.Config):
        worse: str = ""

    def __getattribute__(self, name):
        own = super().__getattribute__
        worse = WORSE.get(own("config").worse) if name != "config" else None
        return (lambda *args: worse[1](self, *args)) if worse and worse[0] == name else own(name)


class SameIds(toys.DotsReader):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return Sample("same", sample.inputs, sample.targets)


class Restless(toys.DotsReader):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample.image.pixels[0, 0, 0] = np.random.randint(256)
        return sample


class Frames(toys.DotsReader):
    sequences = (3, 4)


def brighter(sample, rng):
    sample.image.pixels.clamp_(min=7)
    return sample


def noisy(sample, rng):
    noise = torch.randint(0, 9, sample.image.pixels.shape, dtype=torch.uint8)
    return Sample.of_image(sample.id, sample.image.pixels // 2 + noise, sample.targets)


def by_rng(sample, rng):
    return Sample.of_image(sample.id, sample.image.pixels // 2 + int(rng.integers(99)), sample.targets)


def dots(task):
    return super(Dots, task)


def padded(task, samples):
    batch = dots(task).collate(samples)
    return Batch(
        batch.task, batch.ids, {"image": torch.nn.functional.pad(batch.inputs["image"], (0, len(samples)))}
    )


def backwards(task, samples):
    return dots(task).collate(samples[::-1])


def scaled_by_rows(task, outputs, batch):
    return {name: value * len(batch) for name, value in dots(task).loss(outputs, batch).items()}


def detached(task, outputs, batch):
    return {name: value.detach() for name, value in dots(task).loss(outputs, batch).items()}


def wrong(task, batch):
    return dots(task).decode({"logits": -torch.eye(3)[batch.targets["label"]].double()}, batch)


class Forgetful(toys.ClassificationScores):
    def merge(self, other):
        pass


WORSE = {
    "train and val can be read: reader('train') has no samples": (
        "reader",
        lambda t, s: toys.DotsReader(0, 16, 0),
    ),
    "a sample read twice is the same": ("reader", lambda t, s: Restless(9, 16, 0)),
    "samples have different ids: samples 0 and 1 of 'train' are both called 'same'": (
        "reader",
        lambda t, s: SameIds(9, 16, 0),
    ),
    "streams add up to the reader's length": ("reader", lambda t, s: Frames(9, 16, 0)),
    "training is random only through its generator": ("transform", lambda t, s: noisy),
    "evaluation is not random": ("transform", lambda t, s: by_rng),
    "transforms leave the samples they are given alone: transform('train')": (
        "transform",
        lambda t, s: brighter,
    ),
    "transforms can be sent to workers": ("transform", lambda t, s: lambda sample, rng: sample),
    "batches hold the samples they are made of: the batch's ids": ("collate", backwards),
    "a row does not depend on the others of its batch": ("collate", padded),
    "losses are finite means with a gradient: loss 'cross_entropy' has no gradient": ("loss", detached),
    "counts are given for the losses named in counted": ("counts", lambda t, b: {}),
    "losses do not depend on how a batch is split": ("loss", scaled_by_rows),
    "there is one answer a row, in order": ("decode", lambda t, o, b: dots(t).decode(o, b)[::-1]),
    "the truth has the form of answers: KeyError: 'none' (test_checking.py": (
        "truth",
        lambda t, b: b.targets["none"],
    ),
    "metrics of two halves merge to one pass": ("metric", lambda t: Forgetful((1,), 3, t.classes)),
    "the main metric is computed: main_metric() is 'top9'": ("main_metric", lambda t: "top9"),
    "no answers score better than the truth": ("truth", wrong),
}


@pytest.mark.parametrize("promise", WORSE)
def test_each_broken_promise_is_noticed_and_named(promise):
    found = faults(check_task(Dots.Config(worse=promise, length=9).build(name="dots")))
    assert any(fault.startswith(f"FAULT    {promise}") for fault in found), found
    assert not any("\n" in fault for fault in found)


def test_a_fault_that_leaves_nothing_to_look_at_ends_the_checks():
    findings = list(check_task(Dots.Config(worse=next(iter(WORSE))).build(name="dots")))
    assert findings[-1].skipped == "not before 'train and val can be read' is mended"
    assert len(findings) == 3


def test_a_task_that_offers_nothing_is_told_what_is_missing():
    class Bare(Task):
        pass

    (_, reading, _) = check_task(Bare(Task.Config(), name="bare"))
    assert "NotImplementedError: Bare has no reader" in reading.problem


def test_data_that_cannot_be_opened_is_the_users_to_mend(tmp_path):
    config = build(Task.Config, {"kind": "classification", "data": "imagefolder:nothing"})
    with pytest.raises(DataError, match="nothing does not exist"):
        list(check_task(config.build(name="a", root=tmp_path)))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"x": [1, torch.tensor(float("nan"))]}, {"x": [1, torch.tensor(float("nan"))]}, ""),
        ({"x": [1, 2]}, {"x": [1, 3]}, "v['x'][1]: 2 and 3"),
        ((1,), [1], "v: tuple and list"),
        (torch.zeros(2), torch.zeros(3), "v: float32 [2] and float32 [3]"),
        (np.zeros(2), np.ones(2), "v: values of float64 [2] differ"),
        (Sample("a", {}), Sample("b", {}), "v.id: 'a' and 'b'"),
        ({"x": 1}, {"y": 1}, "v: keys ['x'] and ['y']"),
    ],
)
def test_differences_are_named_by_their_place(a, b, expected):
    assert difference(a, b, "v") == expected
