"""Several tasks, one model; and the same tasks alone, to see what being together costs or brings."""

from __future__ import annotations

from allsight.backbones import InternImage
from allsight.config import Mixture, replace
from allsight.engine.config import EvalConfig, RunConfig
from allsight.engine.optim import AdamW
from allsight.engine.schedule import Cosine
from allsight.models import MultiHead
from allsight.tasks import Classification, SemanticSegmentation

_CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
_STEPS = 2000
_TINY20_SHARE = 0.75


def joint_tiny20_camvid() -> RunConfig:
    """Classification (Tiny ImageNet, 20 classes) and segmentation (CamVid) sharing one InternImage-micro.

    Three of four steps are Tiny ImageNet's. CamVid is trained without its sequence 0016E5, from whose time
    span the val pictures are taken.

    Command: allsight train joint_tiny20_camvid
    Hardware: 2 CPU cores; about 20 minutes. Expected: both metrics near those of `tiny20_alone` and
    `camvid_alone`, which give each task the same number of its own steps. Measured here: see benchmarks/.
    Source: ours.
    """
    return RunConfig(
        name="joint_tiny20_camvid",
        model=MultiHead.Config(backbone=InternImage.Config.variant("micro")),
        tasks=Mixture(
            tiny20=Classification.Config(
                data="imagefolder:tiny_imagenet20",
                share=_TINY20_SHARE,
                size_px=64,
                crop="padded",
                crop_padding_px=8,
                eval_crop=1.0,
                label_smoothing=0.1,
                batch_size=64,
            ),
            camvid=SemanticSegmentation.Config(
                data="label_maps:camvid",
                share=1 - _TINY20_SHARE,
                classes=_CAMVID_CLASSES,
                ignore_label=11,
                leave_out=("0016E5",),
                crop_hw_px=(256, 256),
                min_scale=0.75,
                max_scale=1.5,
                canvas_hw_px=(384, 480),
                head_channels=64,
                batch_size=8,
            ),
        ),
        optim=AdamW.Config(lr=2e-3, weight_decay=0.05, clip_norm=5.0),
        schedule=Cosine.Config(steps=_STEPS, warmup_steps=100),
        eval=EvalConfig(every_steps=500),
    )


def tiny20_alone() -> RunConfig:
    """The classification half of `joint_tiny20_camvid`, for as many of its own steps.

    Command: allsight train tiny20_alone
    Hardware: 2 CPU cores; about 10 minutes. Expected: a reference, no bar. Measured here: see benchmarks/.
    Source: ours.
    """
    return _alone("tiny20", without="camvid", share=_TINY20_SHARE)


def camvid_alone() -> RunConfig:
    """The segmentation half of `joint_tiny20_camvid`, for as many of its own steps.

    Command: allsight train camvid_alone
    Hardware: 2 CPU cores; about 10 minutes. Expected: a reference, no bar. Measured here: see benchmarks/.
    Source: ours.
    """
    return _alone("camvid", without="tiny20", share=1 - _TINY20_SHARE)


def _alone(task: str, *, without: str, share: float) -> RunConfig:
    joint = joint_tiny20_camvid()
    return replace(
        joint,
        {
            "name": f"{task}_alone",
            f"tasks.{without}": None,
            "schedule.steps": round(_STEPS * share),
            "schedule.warmup_steps": round((joint.schedule.warmup_steps or 0) * share),
            "eval.every_steps": round((joint.eval.every_steps or _STEPS) * share),
        },
    )
