"""Small runs on the generated world: the demo, and quick checks that a family trains at all.

Their data root is a world: `allsight data world world`, then `data.root=world`. A figure reached on generated
pictures says nothing about real ones.
"""

from __future__ import annotations

from allsight.backbones import InternImage
from allsight.config import Mixture, replace
from allsight.engine.config import EvalConfig, RunConfig
from allsight.engine.optim import AdamW
from allsight.engine.schedule import Cosine
from allsight.models import MultiHead
from allsight.tasks import Classification, SemanticSegmentation


def joint_world() -> RunConfig:
    """Two tasks on the generated world, one InternImage-nano: what `make demo` trains.

    `shapes` says which of 12 toys is in the middle of a picture, `scenes` the class of every pixel.

    Command: allsight demo (or: allsight train joint_world data.root=world)
    Hardware: 2 CPU cores; 3 to 7 minutes. Expected: more than half of the toys right (57 % on seed 0; chance
    is 8 %). Measured here: yes.
    Source: ours.
    """
    return RunConfig(
        name="joint_world",
        model=MultiHead.Config(backbone=InternImage.Config.variant("nano")),
        tasks=Mixture(
            shapes=Classification.Config(
                data="imagefolder:imagefolder",
                share=0.5,
                size_px=64,
                min_scale=0.5,
                eval_crop=1.0,
                batch_size=32,
                top_k=(3,),
            ),
            scenes=SemanticSegmentation.Config(
                data="label_maps:label_maps",
                share=0.5,
                crop_hw_px=(64, 64),
                min_scale=0.75,
                max_scale=1.25,
                canvas_hw_px=(96, 96),
                head_channels=32,
                batch_size=16,
            ),
        ),
        optim=AdamW.Config(lr=3e-3, weight_decay=0.05, clip_norm=5.0, ema_decay=0.99),
        schedule=Cosine.Config(steps=1200, warmup_steps=20),
        eval=EvalConfig(every_steps=200, max_samples=240),
    )


def joint_smoke() -> RunConfig:
    """`joint_world` for 4 steps: does the whole way from pictures to a report work?

    Command: allsight train joint_smoke data.root=world
    Hardware: 1 CPU core; below 20 seconds. Expected: it ends; nothing is learned. Measured here: yes.
    Source: ours.
    """
    return replace(
        joint_world(),
        {
            "name": "joint_smoke",
            "tasks.shapes.batch_size": 8,
            "tasks.scenes.batch_size": 4,
            "schedule.steps": 4,
            "schedule.warmup_steps": 1,
            "eval.every_steps": 2,
            "eval.max_samples": 12,
            "eval.pictures": 4,
        },
    )


def internimage_t_smoke() -> RunConfig:
    """InternImage-T at full width and depth on 32 px pictures of the generated world, for 2 steps.

    Command: allsight train internimage_t_smoke data.root=world
    Hardware: 1 CPU core; below 20 seconds. Expected: it ends; nothing is learned. Measured here: yes.
    Source: the family of `internimage_t_in1k`, with a small picture and batch.
    """
    return RunConfig(
        name="internimage_t_smoke",
        model=MultiHead.Config(backbone=InternImage.Config.variant("tiny")),
        tasks=Mixture(
            shapes=Classification.Config(
                data="imagefolder:imagefolder", size_px=32, eval_crop=1.0, batch_size=2
            )
        ),
        optim=AdamW.Config(lr=1e-4, clip_norm=5.0),
        schedule=Cosine.Config(steps=2),
        eval=EvalConfig(max_samples=4, pictures=2),
    )
