"""What `m3i_learning.py` trains: the same network, views and steps, different targets.

Each function is a recipe for `allsight train benchmarks/_m3i_recipes.py:NAME`.
"""

from __future__ import annotations

from typing import Any

from allsight.backbones import ViT
from allsight.config import Mixture, replace
from allsight.engine.config import RunConfig
from allsight.models import M3I
from allsight.models.m3i import cases
from allsight.recipes import m3i_micro, m3i_micro_camvid, m3i_micro_finetune
from allsight.tasks.pretraining import Pretraining

VIT = ViT.Config.variant("micro")


def full() -> RunConfig:
    """Both views and all labels: M3I."""
    settings = {"eval.max_samples": 100, "eval.pictures": 0, "checkpoint.every_steps": 200}
    return replace(m3i_micro(), {"name": "full", **settings})


def intra_inter() -> RunConfig:
    """Both views, no labels."""
    return _targets(full(), "intra_inter", category=None)


def intra() -> RunConfig:
    """Both pictures of an input predict their own view."""
    return _targets(full(), "intra", category=None, inter=None, **{"intra.roles": None})


def inter() -> RunConfig:
    """Both pictures of an input predict another view."""
    return _targets(full(), "inter", category=None, intra=None, **{"inter.roles": None})


def supervised() -> RunConfig:
    """The class of whole pictures, from the same views."""
    run = full()
    category = cases.category_target(label_smoothing=0.1)
    model = M3I.Config(backbone=run.model.backbone, targets=Mixture(category=category), watch=run.model.watch)
    return replace(run, {"name": "supervised", "model": model})


def random() -> RunConfig:
    """The weights that all others start from."""
    steps = {"schedule.steps": 1, "schedule.warmup_steps": 0, "optim.lr": 1e-30}
    return replace(supervised(), {"name": "random", **steps})


def second_stage() -> RunConfig:
    """Supervised training that goes on from another run's encoder."""
    return replace(supervised(), {"name": "second_stage", "start.part": "encoder"})


def full_10() -> RunConfig:
    """M3I that has only ever seen a tenth of the labels."""
    return replace(full(), {"name": "full_10", "tasks.tiny20.labelled": 0.1})


def full_vit() -> RunConfig:
    """M3I with a transformer."""
    return replace(full(), {"name": "full_vit", "model.backbone": VIT})


def random_vit() -> RunConfig:
    """The weights that the transformer starts from."""
    return replace(random(), {"name": "random_vit", "model.backbone": VIT})


def street() -> RunConfig:
    """Both views, no labels: pictures of Tiny ImageNet and of CamVid without the sequence that is judged."""
    run = intra_inter()
    tiny: Any = run.tasks.tiny20.model_copy(update={"labels": "ignore", "share": 0.5})
    settings = {**dict(tiny), "data": "label_maps:camvid", "leave_out": ("0016E5",)}
    return replace(
        run, {"name": "street", "tasks": Mixture(tiny20=tiny, camvid=Pretraining.Config(**settings))}
    )


def finetune() -> RunConfig:
    """A tenth of the labels, from the encoder of a run."""
    return replace(m3i_micro_finetune(), {"name": "finetune", "eval.pictures": 0})


def finetune_vit() -> RunConfig:
    """As `finetune`, with a transformer."""
    return replace(finetune(), {"name": "finetune_vit", "model.backbone": VIT})


def segment() -> RunConfig:
    """CamVid from the encoder of a run."""
    return replace(m3i_micro_camvid(), {"name": "segment", "eval.pictures": 0})


def _targets(run: RunConfig, name: str, **changes: Any) -> RunConfig:
    return replace(run, {"name": name, **{f"model.targets.{key}": value for key, value in changes.items()}})
