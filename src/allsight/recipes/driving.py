"""BEVFormer: boxes and maps around a car, on generated drives with a CPU and on nuScenes with GPUs."""

from __future__ import annotations

from typing import Any

from allsight.config import Mixture, replace
from allsight.engine.config import EvalConfig, RunConfig
from allsight.engine.optim import AdamW
from allsight.engine.parameter_groups import Groups
from allsight.engine.schedule import Cosine
from allsight.models import BEVFormer
from allsight.models.bevformer import BEVNetwork, DetectionHead, MapQueryHead
from allsight.tasks import BEVDetection, BEVSegmentation

_REACH_M = 40.0
_GROUND = (-_REACH_M, -_REACH_M, _REACH_M, _REACH_M)
_MICRO_STEPS = 16_000


def bevformer_micro_drives() -> RunConfig:
    """BEVFormer-micro on generated drives, on a CPU: boxes of ten classes, and a map, jointly.

    Two lanes stream through the drives, two frames a step, and gradients run through both. Beside the
    published network: half of the queries start at the peaks of a heatmap, velocities weigh five times as
    much, gradients are clipped at 100. Distances that weigh more from the start on (`box_weight` 1) keep the
    network from finding things at all for longer. Headings and velocities that weigh 4 and embeddings that
    start small were tried for 400 steps of learning 8 clips by heart: half the error of headings, and boxes
    found no sooner.

    Command: allsight data drives drives --scenes 2000 && allsight train bevformer_micro_drives data.root=.
    Hardware: 2 CPU cores; hours. Expected: no figure yet (benchmarks/bev_learning.py has the questions).
    Measured here: no.
    Source: ours, after BEVFormer (arXiv:2203.17270).
    """
    rig: dict[str, Any] = {"data": "nuscenes:drives", "hw_px": (96, 160), "chunk": 2, "batch_size": 2}
    return RunConfig(
        name="bevformer_micro_drives",
        model=BEVFormer.Config(
            network=BEVNetwork.Config.variant("micro", gradient_frames=2, clip_loss="all"),
        ),
        tasks=Mixture(
            boxes=BEVDetection.Config(
                **rig,
                range_m=_GROUND,
                eval_range_m=_REACH_M,
                head=BEVFormer.Config.variant("micro").detection,
                velocity_weight=1.0,
            ),
            map=BEVSegmentation.Config(
                **rig,
                range_m=_GROUND,
                map_range_m=_GROUND,
                map_hw=(80, 80),
                map_classes=("road", "lane"),
                head=MapQueryHead.Config(layers=2, heads=4, hidden=128, upscale=2),
            ),
        ),
        optim=AdamW.Config(lr=1e-3, weight_decay=0.01, clip_norm=100.0, fused=True),
        schedule=Cosine.Config(steps=_MICRO_STEPS, warmup_steps=100),
        eval=EvalConfig(every_steps=_MICRO_STEPS // 8, batch_size=4),
    )


def bevformer_micro_demo() -> RunConfig:
    """`bevformer_micro_drives` for a minute: the driving stage of `make demo`.

    Command: allsight demo
    Hardware: 2 CPU cores; below a minute. Expected: roads begin to show, boxes hardly. Measured here: yes.
    Source: ours.
    """
    return replace(
        bevformer_micro_drives(),
        {
            "name": "bevformer_micro_demo",
            "schedule.steps": 60,
            "schedule.warmup_steps": 10,
            "eval.every_steps": None,
            "eval.pictures": 6,
            "tasks.map.share": 0.7,
            "tasks.boxes.share": 0.3,
        },
    )


def bevformer_micro_smoke() -> RunConfig:
    """`bevformer_micro_drives` for 4 steps: does the whole way from drives to a report work?

    Command: allsight data drives drives --scenes 2 && allsight train bevformer_micro_smoke data.root=.
    Hardware: 1 CPU core; below 20 seconds. Expected: it ends; nothing is learned. Measured here: yes.
    Source: ours.
    """
    return replace(
        bevformer_micro_drives(),
        {
            "name": "bevformer_micro_smoke",
            "schedule.steps": 4,
            "schedule.warmup_steps": 1,
            "eval.every_steps": None,
            "eval.max_samples": 8,
            "eval.pictures": 2,
        },
    )


def bevformer_tiny_nuscenes() -> RunConfig:
    """BEVFormer-tiny on nuScenes: ResNet-50, 50 x 50 cells, pictures of 480 x 800.

    Command: allsight train bevformer_tiny_nuscenes start.weights=resnet50.pth (torchvision's, or OpenMMLab's)
    Hardware: 8 GPUs of 8 GB. Expected: NDS 35.4, mAP 25.2 (published). Measured here: no.
    Source: fundamentalvision/BEVFormer:projects/configs/bevformer/bevformer_tiny.py; see `_nuscenes` below.
    """
    return _nuscenes("tiny", hw_px=(480, 800), history=3)


def bevformer_small_nuscenes() -> RunConfig:
    """BEVFormer-small on nuScenes: ResNet-101 with deformable stages, 150 x 150 cells, 736 x 1280.

    Command: allsight train bevformer_small_nuscenes start.weights=r101_dcn_fcos3d_pretrain.pth
    Hardware: 8 GPUs of 16 GB. Expected: NDS 47.9, mAP 37.0 (published). Measured here: no.
    Source: fundamentalvision/BEVFormer:projects/configs/bevformer/bevformer_small.py; see `_nuscenes` below.
    """
    return _nuscenes("small", hw_px=(736, 1280), history=3)


def bevformer_base_nuscenes() -> RunConfig:
    """BEVFormer-base on nuScenes: ResNet-101 with deformable stages, 200 x 200 cells, 928 x 1600.

    Command: allsight train bevformer_base_nuscenes start.weights=r101_dcn_fcos3d_pretrain.pth
    Hardware: 8 GPUs of 32 GB. Expected: NDS 51.7, mAP 41.6 (published). Measured here: no.
    Source: fundamentalvision/BEVFormer:projects/configs/bevformer/bevformer_base.py; see `_nuscenes` below.
    """
    return _nuscenes("base", hw_px=(928, 1600), history=4)


def _nuscenes(variant: str, *, hw_px: tuple[int, int], history: int) -> RunConfig:
    """The published schedule on clips: one of the earlier frames is dropped, only the last one learns.

    What differs: alignment by relative poses (`model.network.compat=official` has the published rules, and
    then the tasks' `can_bus` brings what the car measured); pictures are resized with antialiasing, and what
    is missing below (900 x 1600 px at these sizes) has the mean colour.
    """
    return RunConfig(
        name=f"bevformer_{variant}_nuscenes",
        model=BEVFormer.Config(network=BEVNetwork.Config.variant(variant)),
        tasks=Mixture(
            boxes=BEVDetection.Config(
                data="nuscenes:nuscenes",
                hw_px=hw_px,
                history=history,
                history_kept=history - 1,
                turn_rad=0.0,
                mirror=0.0,
                distortion=True,
                grid_mask=0.7,
                compat="official",
                head=DetectionHead.Config(),
                batch_size=8,
            )
        ),
        optim=AdamW.Config(
            lr=2e-4,
            weight_decay=0.01,
            clip_norm=35.0,
            groups=Groups(stage_lr=(0.1, 0.1, 0.1, 0.1, 0.1)),
            fused=True,
        ),
        schedule=Cosine.Config(epochs=24, warmup_steps=500, warmup_start_ratio=1 / 3, final_ratio=1e-3),
        eval=EvalConfig(batch_size=8),
    )
