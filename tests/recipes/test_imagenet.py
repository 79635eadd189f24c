"""The ImageNet recipes of InternImage: their figures, and that each of them trains."""

import math

import pytest
from data.toy_sets import imagefolder

from allsight import recipes
from allsight.config import replace
from allsight.engine.parameter_groups import DCNRates
from allsight.engine.schedule import build_schedule
from allsight.engine.trainer import Trainer

SCRATCH = {"t": ("tiny", 0.1), "s": ("small", 0.4), "b": ("base", 0.5)}
PRE_TRAINED = {"l": ("large", 0.1), "xl": ("xlarge", 0.2)}
FINE_TUNED = {
    "l_in1k_384": ("large", 384, 0.1),
    "xl_in1k_384": ("xlarge", 384, 0.2),
    "h_in1k_640": ("huge", 640, 0.2),
    "g_in1k_512": ("giant", 512, 0.4),
}
NAMES = [
    *(f"internimage_{k}_in1k" for k in SCRATCH),
    *(f"internimage_{k}_in22k" for k in PRE_TRAINED),
    *(f"internimage_{k}{twin}" for k in FINE_TUNED for twin in ("", "_layer_decay")),
]


def only(config):
    return next(iter(config.tasks.values()))


def peak_lr(config) -> float:
    return config.optim.lr * only(config).batch_size / config.optim.lr_is_for_batch


def lr_at(config, epoch: float, per_epoch: int = 100) -> float:
    schedule = build_schedule(config.schedule, steps_per_epoch=per_epoch)
    return peak_lr(config) * schedule.factor(round(epoch * per_epoch))


@pytest.mark.parametrize("name", NAMES)
def test_what_all_have_in_common(name):
    config = getattr(recipes, name)()
    task, optim, net = only(config), config.optim, config.model.backbone
    assert (optim.betas, optim.eps, optim.weight_decay, optim.clip_norm) == ((0.9, 0.999), 1e-8, 0.05, 5.0)
    assert (optim.ema_decay, optim.ema_warmup, optim.lr_is_for_batch) == (0.9999, False, 512)
    assert (task.randaugment, task.randaugment_magnitude, task.colour) == (2, 9.0, 0.0)
    assert (task.crop, task.min_scale, task.flip) == ("resized", 0.08, 0.5)
    assert (task.interpolation, task.eval_crop, net.drop_path_rule) == ("bicubic", 1.0, "linear")


@pytest.mark.parametrize("key", SCRATCH)
def test_figures_of_training_from_scratch(key):
    variant, drop_path = SCRATCH[key]
    config = getattr(recipes, f"internimage_{key}_in1k")()
    task, net = only(config), config.model.backbone
    assert net == type(net).variant(variant, drop_path=drop_path)
    assert (task.batch_size, task.size_px, task.num_classes) == (4096, 224, 1000)
    assert (task.mixup, task.cutmix, task.erasing, task.label_smoothing) == (0.8, 1.0, 0.25, 0.1)
    assert peak_lr(config) == pytest.approx(4e-3)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (300, 20)
    # 5e-7, 5e-4 and 5e-6 for 512 pictures; the cosine counts from the first epoch.
    assert lr_at(config, 0) == pytest.approx(4e-6, abs=4e-3 / 1900)
    assert lr_at(config, 150) == pytest.approx(4e-5 + (4e-3 - 4e-5) / 2)
    assert lr_at(config, 20) == pytest.approx(4e-5 + (4e-3 - 4e-5) * (1 + math.cos(math.pi * 20 / 300)) / 2)
    assert lr_at(config, 300) == pytest.approx(4e-5)
    assert config.optim.groups.layer_decay == 1 and not config.start.weights


@pytest.mark.parametrize("key", PRE_TRAINED)
def test_figures_of_pre_training(key):
    variant, drop_path = PRE_TRAINED[key]
    config = getattr(recipes, f"internimage_{key}_in22k")()
    task, net = only(config), config.model.backbone
    assert net == type(net).variant(variant, drop_path=drop_path)
    assert (task.batch_size, task.size_px, task.num_classes) == (4096, 192, 21841)
    assert (task.mixup, task.cutmix, task.erasing, task.label_smoothing) == (0.8, 1.0, 0.25, 0.1)
    assert peak_lr(config) == pytest.approx(1e-3)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (90, 5)


@pytest.mark.parametrize("key", FINE_TUNED)
def test_figures_of_fine_tuning_and_its_twin(key):
    variant, size_px, drop_path = FINE_TUNED[key]
    config = getattr(recipes, f"internimage_{key}")()
    task, net = only(config), config.model.backbone
    assert net == type(net).variant(variant, drop_path=drop_path, remat="block")
    assert config.model.head == ("attention" if variant in ("huge", "giant") else "conv")
    assert (task.batch_size, task.size_px, task.num_classes) == (512, size_px, 1000)
    assert (task.mixup, task.cutmix, task.erasing, task.label_smoothing) == (0, 0, 0, 0.3)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (20, 2)
    assert peak_lr(config) == pytest.approx(2e-5)
    assert lr_at(config, 0) == pytest.approx(0, abs=2e-5 / 199) and lr_at(config, 20) == 0
    assert config.start.weights and config.optim.groups == type(config.optim.groups)()

    twin = getattr(recipes, f"internimage_{key}_layer_decay")()
    groups = twin.optim.groups
    assert (groups.layer_decay, groups.compat) == (0.9, "official")
    assert groups.dcn_lr_multiplier == DCNRates(offset=0.1, mask=1.0, center_feature_scale=0.1)
    assert replace(twin, {"name": config.name, "optim.groups": config.optim.groups}) == config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for name in ("in1k", "in22k"):
        imagefolder(root / name)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_when_all_of_it_is_small(name, pictures):
    config = getattr(recipes, name)()
    task = next(iter(config.tasks))
    small = {
        "data.root": str(pictures),
        "start.weights": "",
        "model.num_classes": 2,
        f"tasks.{task}.num_classes": 2,
        f"tasks.{task}.size_px": 32,
        f"tasks.{task}.batch_size": 2,
        "model.backbone.channels": 16,
        "model.backbone.depths": (1, 1, 2, 1),
        "model.backbone.groups": (1, 2, 4, 8),
        "model.backbone.third_stage_norm_after": (1,),
        "schedule.epochs": 1,
        "schedule.warmup_epochs": 0.5,
        "precision": "fp32",
        "eval.pictures": 0,
    }
    trainer = Trainer(replace(config, small))
    steps = list(trainer)
    assert len(steps) == 2 and all(math.isfinite(step.loss) and not step.skipped for step in steps)
    assert trainer._updater.ema is not None and trainer._updater.ema.averages
    assert math.isfinite(trainer.evaluate()[f"{task}/top1"])
