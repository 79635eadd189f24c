"""Pre-training as a task: real pictures in, batches for M3I out, a run with monitors at the end."""

import json

import numpy as np
import pytest
import torch

from allsight.config import ConfigError, Mixture, replace
from allsight.data.policies import Policy, few_of
from allsight.data.text import Tokenizer
from allsight.engine.trainer import Trainer
from allsight.recipes import m3i_micro
from allsight.tasks import Classification
from allsight.tasks.pretraining import NOBODY_LABELLED, Pretraining


def tiny_task(root, **changes):
    settings = {"data": "imagefolder:tiny_imagenet20", "size_px": 32, "group_size": 2, **changes}
    return Pretraining.Config(**settings).build(name="tiny", root=root)


def batch_of(task, split, indices):
    reader, transform = task.reader(split), task.transform(split)
    return task.collate([transform(reader[i], np.random.default_rng(i)) for i in indices])


def test_a_batch_has_views_geometry_seeds_and_labels(real_data):
    batch = batch_of(tiny_task(real_data), "train", [0, 400, 800])
    assert [view.shape for view in batch.inputs["views"]] == [(3, 3, 32, 32)] * 2
    assert batch.inputs["views"][0].dtype is torch.uint8
    assert [g.shape for g in batch.inputs["geometry"]] == [(3, 6)] * 2
    assert len(set(batch.inputs["seed"].tolist())) == 3
    reader = tiny_task(real_data).reader("train")
    assert batch.targets["label"].tolist() == [reader[i].targets["label"] for i in (0, 400, 800)]
    assert not torch.equal(batch.inputs["views"][0], batch.inputs["views"][1])


def test_a_tenth_of_the_labels_is_that_of_fine_tuning(real_data):
    some = tiny_task(real_data, labelled=0.1)
    reader = some.reader("train")
    few = few_of(
        Classification.Config(data=some.config.data).build(root=real_data).reader("train"), 0.1, seed=0
    )
    assert len(reader) == 8996 and len(few) == 900
    told = reader.sample_classes()
    assert np.flatnonzero(np.diff(told.offsets)).tolist() == few.tolist()
    assert np.bincount(told.labels).tolist() == [45] * 20
    rows = [*few[:3].tolist(), *(i for i in range(40) if i not in few)]
    labels = batch_of(some, "train", rows).targets["label"]
    assert (labels[:3] >= 0).all() and (labels[3:] == NOBODY_LABELLED).all()
    other = tiny_task(real_data, labelled=0.1, policy=Policy(fraction_seed=1)).reader("train")
    assert np.flatnonzero(np.diff(other.sample_classes().offsets)).tolist() != few.tolist()
    assert (batch_of(some, "val", range(20)).targets["label"] >= 0).all()
    none = tiny_task(real_data, labels="ignore")
    assert none.num_classes is None
    assert "label" not in batch_of(none, "val", [0, 1]).targets


def test_captions_are_cut_padded_and_counted(real_data, tmp_path):
    Tokenizer.train(["a red square", "two dogs on a beach"], vocab_size=270).save(tmp_path / "tokenizer.json")
    task = Pretraining.Config(
        data="coco_captions:coco_small", size_px=32, tokenizer=str(tmp_path), max_tokens=12
    ).build(name="captions", root=real_data)
    batch = batch_of(task, "train", [0, 1])
    assert batch.targets["tokens"].shape == (2, 12)
    assert batch.targets["captioned"].all() and task.counts(batch) == {"label": 0.0, "caption": 2.0}
    last = batch.targets["is_token"].sum(1) - 1
    ends = batch.targets["tokens"].gather(1, last[:, None])[:, 0]
    assert (ends == task.tokenizer.eos_id).all()


def test_a_relative_tokenizer_needs_a_root():
    task = Pretraining.Config(data="imagefolder:x", tokenizer="words").build(name="t", root=None)
    with pytest.raises(ConfigError, match=r"config.tasks.t.tokenizer: 'words' is relative"):
        _ = task.tokenizer


def small_run():
    looks = {"tasks.tiny20.size_px": 32, "tasks.tiny20.batch_size": 4, "eval.max_samples": 8}
    net = {"model.backbone.channels": 8, "model.backbone.groups": (1, 1, 1, 1)}
    decoders = {f"model.targets.{name}.decoder.channels": 16 for name in ("intra", "inter")}
    steps = {"schedule.steps": 3, "schedule.warmup_steps": 1, "model.momentum.steps": 3}
    watch = {"model.watch.every_steps": 2, "checkpoint.every_steps": 2}
    return replace(m3i_micro(), {**looks, **net, **decoders, **steps, **watch})


def test_the_recipe_trains_and_its_events_hold_the_monitors(real_data, tmp_path):
    trainer = Trainer(small_run(), folder=tmp_path / "run")
    metrics = trainer.fit()
    trainer.close()
    assert {"tiny20/agreement", "tiny20/loss_intra", "tiny20/loss_label", "tiny20/top1"} <= set(metrics)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    seen = {e["step"]: e["values"] for e in events if e["kind"] == "monitor"}
    assert list(seen) == [0, 2]
    assert {"intra/target_std", "inter/gradient", "momentum/distance", "features/rank"} <= set(seen[2])
    resumed = Trainer(small_run(), folder=tmp_path / "run", resume=True)
    slow = {n: p for n, p in resumed.model.named_parameters() if n.startswith("momentum_encoder")}
    for name, parameter in trainer.model.named_parameters():
        if name in slow:
            assert torch.equal(parameter, slow[name])
    assert resumed.model._number() == 3
    resumed.close()


def test_labelled_and_plain_pictures_train_one_model(real_data):
    config = small_run()
    task = config.tasks.tiny20
    plain = task.model_copy(update={"labels": "ignore"})
    config = replace(config, {"tasks": Mixture(tiny20=task, plain=plain), "schedule.steps": 4})
    trainer = Trainer(config)
    losses = {}
    for step in trainer:
        losses |= step.losses
    trainer.close()
    assert set(losses["tiny20"]) == {"intra", "inter", "label"} and set(losses["plain"]) == {"intra", "inter"}
