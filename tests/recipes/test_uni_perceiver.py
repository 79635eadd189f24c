"""The recipes of Uni-Perceiver: their figures, and that each of them trains."""

import math
from itertools import islice

import pytest
from data.toy_sets import imagefolder
from text_sets import make_sets

from allsight import recipes
from allsight.config import replace
from allsight.engine.trainer import Trainer
from allsight.tasks import (
    Captioning,
    Classification,
    ImageTextRetrieval,
    MaskedLanguage,
    VideoClassification,
)

STAGES = {"base_mix16": (64, 200_000, 45_000), "moe_base_mix16": (56, 230_000, 50_000)}
TUNED = ("base_in1k", "base_in1k_prompts", "base_coco", "base_coco_prompts")
SMALL = {
    "precision": "fp32",
    "start.weights": "",
    "start.fresh": (),
    "model.channels": 16,
    "model.depth": 2,
    "model.heads": 2,
    "model.hidden": 16,
    "model.patch_px": 8,
    "model.image_px": 16,
    "model.vocab_size": None,
    "model.spe_id": None,
    "model.word_end": None,
    "schedule.steps": 3,
    "schedule.warmup_steps": 0,
}
DATA = {
    Classification: "imagefolder:in1k",
    VideoClassification: "webdataset:clips",
    MaskedLanguage: "manifest:sets",
    Captioning: "coco_captions:set",
    ImageTextRetrieval: "coco_captions:set",
}


@pytest.mark.parametrize("name", STAGES)
def test_figures_of_the_joint_runs(name):
    gpus, first_steps, second_steps = STAGES[name]
    first, second = (getattr(recipes, f"uni_perceiver_{name}{end}")() for end in ("", "_224"))
    for config in (first, second):
        tasks, optim = config.tasks, config.optim
        assert len(tasks) == 16
        assert sum(task.share for task in tasks.values()) == pytest.approx(10, abs=1e-3)
        assert (config.sampling.layout, config.sampling.lanes) == ("mixed_lanes", gpus)
        per_gpu = {name: task.batch_size / gpus for name, task in tasks.items()}
        assert (per_gpu["in22k"], per_gpu["k700"], per_gpu["mit"]) == (720, 64, 112)
        assert (per_gpu["books_wiki"], per_gpu["cc3m_captions"], per_gpu["cc3m_pairs"]) == (512, 300, 512)
        weights = {task.of: task.loss_weight for task in tasks.values()}
        assert weights == {
            Classification: 1.0,
            VideoClassification: 0.1,
            MaskedLanguage: 0.5,
            Captioning: 1.0,
            ImageTextRetrieval: 0.5,
        }
        assert tasks.in22k.mixup == 0.8 and tasks.in22k.cutmix == 1.0 and tasks.coco_pairs.group_size == 512
        assert (optim.betas, optim.eps, optim.clip_norm) == ((0.9, 0.95), 1e-6, 0.1)
        assert (config.model.experts is not None) == name.startswith("moe")
    assert (first.optim.lr, first.optim.weight_decay, second.optim.lr) == (1e-3, 0.2, 2e-5)
    assert (first.schedule.steps, second.schedule.steps) == (first_steps, second_steps)
    assert (first.schedule.warmup_steps, second.schedule.warmup_steps) == (10_000, 5_000)
    for config in (first, second):
        assert config.optim.lr * config.schedule.final_ratio == pytest.approx(1e-6)
    assert (first.model.image_px, first.model.position_scale) == (160, 1.0)
    assert (second.model.image_px, second.model.position_scale) == (224, 160 / 224)
    assert second.optim.weight_decay == 0.05 and second.tasks.cc3m_pairs.size_px == 224


def test_figures_of_prompt_tuning():
    in1k, captions = (getattr(recipes, f"uni_perceiver_{TUNED[n]}")() for n in (1, 3))
    assert (in1k.optim.lr, in1k.schedule.steps, in1k.tasks.in1k.policy.fraction) == (1e-4, 2500, 0.01)
    assert (captions.optim.lr, captions.schedule.steps) == (1e-3, 1000)
    assert captions.tasks.captions.policy.fraction == 0.01 and captions.tasks.captions.beam == 2
    assert in1k.model.prompts.heads == ("in1k",) and captions.model.prompts.heads == ()
    assert in1k.model.prompts.length == captions.model.prompts.length == 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = make_sets(tmp_path_factory.mktemp("generalist"))
    imagefolder(folder / "in1k")
    return folder


@pytest.mark.parametrize("name", ["base_mix16", "moe_base_mix16_224", *TUNED])
def test_each_trains_when_all_of_it_is_small(name, root):
    config = getattr(recipes, f"uni_perceiver_{name}")()
    small = {**SMALL, "data.root": str(root)}
    if config.sampling.lanes > 1:
        small["sampling.lanes"] = 2
    for task, settings in config.tasks.items():
        small |= {f"tasks.{task}.data": DATA[settings.of], f"tasks.{task}.batch_size": 4}
        small |= {f"tasks.{task}.group_size": min(2, settings.group_size), f"tasks.{task}.size_px": 16}
        if settings.of is Classification:
            small[f"tasks.{task}.num_classes"] = 2
        else:
            small[f"tasks.{task}.max_tokens"] = 32
        if settings.of is VideoClassification:
            small[f"tasks.{task}.num_frames"] = 2
    trainer = Trainer(replace(config, small))
    # The third step would be followed by an evaluation.
    steps = list(islice(trainer, 2))
    assert len(steps) == 2 and all(math.isfinite(step.loss) and not step.skipped for step in steps)
    trained = sum(p.requires_grad for p in trainer.model.parameters())
    assert (trained < 30) == ("prompts" in name)
