"""M3I pre-training: supervised, self-supervised and image-text targets in one stage.

The paper's schedules and weights for ViT-B/16 were never published. What is marked [D] is our choice; what
stands in for unpublished settings comes from Siamese Image Modeling (arXiv:2206.01204), by the same group.
"""

from __future__ import annotations

from allsight.backbones import InternImage, ViT
from allsight.config import Mixture, replace
from allsight.data.policies import Policy
from allsight.engine.config import EvalConfig, ProbeConfig, RunConfig, StartConfig
from allsight.engine.optim import AdamW
from allsight.engine.parameter_groups import Groups
from allsight.engine.schedule import Cosine
from allsight.models import MultiHead
from allsight.models.m3i import MomentumSchedule, Pooled, Watch, cases
from allsight.recipes.multitask import camvid_alone
from allsight.tasks import Classification
from allsight.tasks.pretraining import Pretraining, ViewLooks

MICRO = InternImage.Config(
    channels=24, depths=(1, 1, 1, 1), groups=(2, 4, 8, 16), later_strides=(2, 1, 1), layer_scale=0.1
)
"""The backbone of `m3i_micro`, which what is trained from its weights has too."""

OF_M3I = StartConfig(part="backbone", part_in_weights="encoder.backbone")
"""Takes the backbone of a run of M3I, or of a file that holds it alone, once start.weights is set."""


def m3i_micro() -> RunConfig:
    """M3I with a small InternImage on 20 classes of Tiny ImageNet at 64 px, on a CPU.

    The network keeps 8 x 8 cells to its end, so that halves of mixed pictures exist at this size. All numbers
    are ours [D]. With `model.backbone.kind=vit model.backbone.variant=micro` a transformer takes its place.

    Command: allsight train m3i_micro
    Hardware: one CPU core; about 10 minutes. Expected: no alarm; losses of both views fall, which alone says
    nothing; probe the features. Measured here: 1,000 steps, three seeds: linear probe 0.50, at random 0.37.
    Source: ours; objective of arXiv:2211.09807, figure 2.
    """
    decoder = {"channels": 96, "heads": 4, "projector_blocks": 1, "predictor_blocks": 2, "mlp_ratio": 2.0}
    looks = ViewLooks(area=(0.3, 1.0), jitter=(0.4, 0.4, 0.4, 0.0), blur=0.0)
    return RunConfig(
        name="m3i_micro",
        model=cases.m3i(
            MICRO,
            block_px=8,
            decoder=decoder,
            centre=True,
            momentum=MomentumSchedule(start=0.99),
            watch=Watch.Config(every_steps=50, reference_step=500),
        ),
        tasks=Mixture(
            tiny20=Pretraining.Config(
                data="imagefolder:tiny_imagenet20",
                views=(looks, looks),
                size_px=64,
                interpolation="bilinear",
                batch_size=32,
                group_size=2,
            )
        ),
        optim=AdamW.Config(lr=1e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=Cosine.Config(steps=1500, warmup_steps=60),
        eval=EvalConfig(max_samples=500, pictures=0),
    )


def m3i_world() -> RunConfig:
    """M3I on the toys of the generated world: what `make demo` pre-trains, in a minute.

    Nearest neighbours judge the features before the first step and after the last.

    Command: allsight demo (or: allsight train m3i_world data.root=world)
    Hardware: 2 CPU cores; about a minute. Expected: no alarm, and predictions that know the mean and the
    place of a cell; so few steps teach neighbours nothing yet (22 % before and after on seed 0, chance is
    8 %). Measured here: yes.
    Source: ours.
    """
    micro = m3i_micro()
    task = micro.tasks.tiny20.model_copy(update={"data": "imagefolder:imagefolder"})
    settings = {
        "name": "m3i_world",
        "tasks": Mixture(toys=task),
        "model.watch.every_steps": 10,
        "model.watch.reference_step": 50,
        "schedule.steps": 120,
        "schedule.warmup_steps": 10,
        "optim.lr": 2e-3,
        "eval.max_samples": 64,
        "eval.probes": (ProbeConfig(),),
    }
    return replace(micro, settings)


def m3i_world_smoke() -> RunConfig:
    """`m3i_world` for 2 steps on 32 px: does pre-training run at all?

    Command: allsight train m3i_world_smoke data.root=world
    Hardware: 1 CPU core; below 10 seconds. Expected: it ends; nothing is learned. Measured here: yes.
    Source: ours.
    """
    settings = {"name": "m3i_world_smoke", "schedule.steps": 2, "schedule.warmup_steps": 0}
    task = {"tasks.toys.size_px": 32, "tasks.toys.batch_size": 4, "eval.max_samples": 4}
    return replace(m3i_world(), {**settings, **task})


def m3i_micro_finetune() -> RunConfig:
    """Fine-tune the backbone of `m3i_micro` to classify, with a tenth of the labels and layer decay 0.75.

    `tasks.tiny20.policy.fraction` says how many labels: 0.01, 0.1, or 1 for all. Without start.weights it is
    the run from scratch to compare with. All numbers are ours [D].

    Command: allsight train m3i_micro_finetune start.weights=runs/m3i_micro
    Hardware: one CPU core; about 3 minutes. Expected: above the same from scratch. Measured here: see
    benchmarks/results.
    Source: ours; layer decay as in BEiT, arXiv:2106.08254.
    """
    return RunConfig(
        name="m3i_micro_finetune",
        model=MultiHead.Config(backbone=MICRO),
        tasks=Mixture(
            tiny20=Classification.Config(
                data="imagefolder:tiny_imagenet20",
                policy=Policy(fraction=0.1),
                size_px=64,
                min_scale=0.3,
                colour=0.2,
                eval_crop=1.0,
                label_smoothing=0.1,
                batch_size=32,
            )
        ),
        start=OF_M3I,
        optim=AdamW.Config(lr=1e-3, weight_decay=0.05, clip_norm=1.0, groups=Groups(layer_decay=0.75)),
        schedule=Cosine.Config(steps=400, warmup_steps=40),
    )


def m3i_micro_camvid() -> RunConfig:
    """Dense transfer: segment CamVid from the backbone of `m3i_micro`, with the house's head.

    Data and head are those of `camvid_alone`. Without start.weights it is the run from scratch to compare
    with. All numbers are ours [D].

    Command: allsight train m3i_micro_camvid start.weights=runs/m3i_micro
    Hardware: one CPU core; about 10 minutes. Expected: above the same from scratch. Measured here: no.
    Source: ours.
    """
    alone = camvid_alone()
    return replace(
        alone, {"name": "m3i_micro_camvid", "model": MultiHead.Config(backbone=MICRO), "start": OF_M3I}
    )


def m3i_vit_b16_finetune() -> RunConfig:
    """Fine-tune the backbone of `m3i_vit_b16` on ImageNet-1k, 100 epochs at 224 px with layer decay 0.65.

    Command: allsight train m3i_vit_b16_finetune data.root=... start.weights=runs/m3i_vit_b16
    Hardware: many GPUs. Expected: 84.1 % for the ancestor Siamese Image Modeling; of M3I nobody knows.
    Measured here: no.
    Source: the fine-tuning of OpenGVLab/Siamese-Image-Modeling, whose mean of the cells and augmentation are
    those of MAE.
    """
    return RunConfig(
        name="m3i_vit_b16_finetune",
        model=MultiHead.Config(backbone=ViT.Config.variant("base", drop_path=0.1)),
        tasks=Mixture(
            in1k=Classification.Config(
                data="imagefolder:in1k",
                batch_size=1024,
                group_size=2,
                interpolation="bicubic",
                randaugment=2,
                mixup=0.8,
                cutmix=1.0,
                erasing=0.25,
                label_smoothing=0.1,
            )
        ),
        start=OF_M3I,
        optim=AdamW.Config(
            lr=2.5e-4, lr_is_for_batch=256, weight_decay=0.05, groups=Groups(layer_decay=0.65)
        ),
        schedule=Cosine.Config(epochs=100, warmup_epochs=5),
        precision="bf16",
    )


def m3i_vit_b16() -> RunConfig:
    """M3I with ViT-B/16 on ImageNet-1k with its labels, 1600 epochs at 224 px.

    Pictures are mixed by patches of 16 px, half and half [D], and kept apart by attention [D]; the weights 1,
    1 and 0.5 of the targets are ours [D]. Batch, rates, decay, decoder, momentum and the covariance term are
    those of Siamese Image Modeling. 1600 epochs of ImageNet-1k are 500,400 steps.

    Command: allsight train m3i_vit_b16 data.root=...
    Hardware: many GPUs. Expected: nobody knows; the paper's figures for ViT-B/16 could not be read.
    Measured here: no.
    Source: OpenGVLab/Siamese-Image-Modeling (schedule); arXiv:2211.09807, figure 2 (targets).
    """
    return RunConfig(
        name="m3i_vit_b16",
        model=cases.m3i(
            ViT.Config.variant("base", freeze_patches=True),
            block_px=16,
            momentum=MomentumSchedule(start=0.995),
        ),
        tasks=Mixture(in1k=_in1k(batch_size=4096)),
        optim=AdamW.Config(
            lr=6.25e-5, lr_is_for_batch=256, betas=(0.9, 0.95), weight_decay=0.05, clip_norm=1.0
        ),
        schedule=Cosine.Config(epochs=1600, warmup_epochs=40),
        precision="bf16",
        eval=EvalConfig(every_steps=12_500, max_samples=10_000),
    )


def m3i_internimage_b() -> RunConfig:
    """M3I with InternImage-B on ImageNet-1k with its labels, 300 epochs at 224 px.

    One mask of 32 px blocks serves all stages [D]; pictures see each other, as convolutions must. The
    schedule is that of `m3i_vit_b16` at fewer epochs [D].

    Command: allsight train m3i_internimage_b data.root=...
    Hardware: many GPUs. Expected: nobody knows; the paper trained no InternImage-B this way.
    Measured here: no.
    Source: arXiv:2211.09807, figure 2 (targets); the rest is ours.
    """
    return _internimage("m3i_internimage_b", "base", epochs=300, neck="last")


def m3i_internimage_h() -> RunConfig:
    """M3I with InternImage-H at 224 px, with the neck and pooling that its released weights have.

    The paper's model saw 427 million pictures (LAION-400M, YFCC-15M, CC12M) for 30 epochs, with captions;
    this recipe names a labelled set in their place. Released figures of InternImage-H (65.4 box AP on COCO,
    62.9 mIoU on ADE20K, 89.6 % on ImageNet) come after further supervised stages, not from M3I alone.

    Command: allsight train m3i_internimage_h data.root=...
    Hardware: hundreds of GPUs. Expected: see above. Measured here: no.
    Source: arXiv:2211.09807; OpenGVLab/InternImage:classification/models/intern_image.py (neck). Weights of
    the targets and the schedule are ours [D].
    """
    pool = Pooled.Config(pool="attention", norm=True)
    return replace(
        _internimage("m3i_internimage_h", "huge", epochs=30, neck="shuffle"),
        {"model.targets.category.decoder": pool},
    )


def _internimage(name: str, variant: str, *, epochs: int, neck: str) -> RunConfig:
    return RunConfig(
        name=name,
        model=cases.m3i(
            InternImage.Config.variant(variant, remat="block"),
            neck=neck,
            block_px=32,
            momentum=MomentumSchedule(start=0.995),
        ),
        tasks=Mixture(in1k=_in1k(batch_size=4096)),
        optim=AdamW.Config(
            lr=6.25e-5, lr_is_for_batch=256, betas=(0.9, 0.95), weight_decay=0.05, clip_norm=1.0
        ),
        schedule=Cosine.Config(epochs=epochs, warmup_epochs=epochs / 40),
        precision="bf16",
        eval=EvalConfig(every_steps=12_500, max_samples=10_000),
    )


def _in1k(batch_size: int) -> Pretraining.Config:
    return Pretraining.Config(data="imagefolder:in1k", batch_size=batch_size, group_size=2)
