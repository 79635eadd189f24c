"""Uni-Perceiver: sixteen tasks in one model, dense and with experts; fine-tuning and prompt tuning of it.

Shares, batches, weights and rates are those of fundamentalvision/Uni-Perceiver, batches for its 64 (dense) or
56 (experts) GPUs, each of which draws a task for itself. What the release does not say, or what is not here,
is ours and marked [D]. Wherever `data` says `webdataset:NAME`, any other set of captioned pictures will do.
"""

from __future__ import annotations

from typing import Any

from allsight.config import Mixture, replace
from allsight.data.policies import Policy
from allsight.engine.config import EvalConfig, RunConfig, SamplingConfig, StartConfig
from allsight.engine.optim import AdamW
from allsight.engine.schedule import Cosine
from allsight.models import UniPerceiver
from allsight.models.uniperceiver import ExpertSettings, PromptSettings
from allsight.tasks import (
    Captioning,
    Classification,
    ImageTextRetrieval,
    MaskedLanguage,
    VideoClassification,
)

# CLIP's vocabulary and three more ids; words of the vocabulary are candidates with an end behind them.
_VOCABULARY: dict[str, int] = {"vocab_size": 49_411, "spe_id": 49_410, "word_end": 49_407}
_CAPTIONED = {"yfcc": 0.584, "cc12m": 0.5057, "cc3m": 0.26295, "vg": 0.1766, "sbu": 0.1383, "coco": 0.1144}
"""Set of captioned pictures -> its share, once for captions and once for retrieval."""
_EVALUATION = EvalConfig(max_samples=5000, pictures=8)
_NEW = ("encoder.trunk.prompts", "encoder.text.spe_bias")


def _base(image_px: int, **changes: Any) -> UniPerceiver.Config:
    return UniPerceiver.Config.variant(
        "base",
        **{**_VOCABULARY, "image_px": image_px, "position_scale": 160 / image_px, "text_types": 2, **changes},
    )


def _sixteen(gpus: int, size_px: int) -> Mixture[Any]:
    """The tasks of the released reproduction."""
    # [D]: lengths of captions, and that longer ones are cut.
    text: dict[str, Any] = {"long_texts": "cut", "max_tokens": 64, "size_px": size_px, "min_scale": 0.5}
    tasks: dict[str, Any] = {
        "in22k": Classification.Config(
            data="imagefolder:in22k",
            share=2.486,
            batch_size=720 * gpus,
            group_size=2,
            size_px=size_px,
            tokenizer="tokenizer.json",
            interpolation="bicubic",
            randaugment=2,
            erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
            label_smoothing=0.1,
            temperature="img_cls",
        ),
        "k700": _clips("video:k700", share=0.76, batch_size=64 * gpus, num_frames=8, size_px=size_px),
        "mit": _clips("video:mit", share=0.44, batch_size=112 * gpus, num_frames=3, size_px=size_px),
        "books_wiki": MaskedLanguage.Config(
            data="text:books_wiki",
            share=2.75,
            batch_size=512 * gpus,
            loss_weight=0.5,
            max_tokens=128,
            long_texts="cut",
            temperature="text_mlm",
        ),
    }
    for name, share in _CAPTIONED.items():
        data = f"webdataset:{name}"
        tasks[f"{name}_captions"] = Captioning.Config(
            data=data, share=share, batch_size=300 * gpus, temperature="caption", **text
        )
        tasks[f"{name}_pairs"] = ImageTextRetrieval.Config(
            data=data,
            share=share,
            batch_size=512 * gpus,
            group_size=512,
            loss_weight=0.5,
            temperature="retrieve",
            **text,
        )
    return Mixture(**tasks)


def _clips(data: str, **settings: Any) -> VideoClassification.Config:
    return VideoClassification.Config(data=data, loss_weight=0.1, temperature="video_cls", **settings)


def _joint(name: str, gpus: int, steps: int, *, image_px: int, **model: Any) -> RunConfig:
    temperatures = ("img_cls", "video_cls", "text_mlm", "caption", "retrieve")
    return RunConfig(
        name=name,
        model=_base(image_px, temperatures=temperatures, **model),
        tasks=_sixteen(gpus, image_px),
        sampling=SamplingConfig(layout="mixed_lanes", lanes=gpus),
        optim=AdamW.Config(lr=1e-3, weight_decay=0.2, betas=(0.9, 0.95), eps=1e-6, clip_norm=0.1),
        # Down to 1e-6.
        schedule=Cosine.Config(steps=steps, warmup_steps=10_000, final_ratio=1e-3),
        precision="bf16",
        eval=_EVALUATION,
    )


def _second_stage(first: RunConfig, gpus: int, steps: int) -> RunConfig:
    """On at 224 px from where a first stage ended; its positions lie on the same extent."""
    return replace(
        first,
        {
            "name": f"{first.name}_224",
            "model.image_px": 224,
            "model.position_scale": 160 / 224,
            "tasks": _sixteen(gpus, 224),
            "start.weights": f"runs/{first.name}",
            "start.fresh": ("encoder.vision.grid",),
            "optim.lr": 2e-5,
            "optim.weight_decay": 0.05,
            "schedule.steps": steps,
            "schedule.warmup_steps": 5_000,
            # [D]: down to 1e-6, as in the first stage.
            "schedule.final_ratio": 0.05,
        },
    )


def uni_perceiver_base_mix16() -> RunConfig:
    """Uni-Perceiver base on sixteen tasks at 160 px, 200,000 steps: the first stage of the release.

    Differs in precision (bf16 for fp16), in lengths of captions and crops of captioned pictures [D], and in
    what clips show: frames spread over the whole clip.

    Command: allsight train uni_perceiver_base_mix16 data.root=... --gpus 8 --nodes 8
    Hardware: officially 64 GPUs. Expected: no figure of this stage was published. Measured here: no.
    Source: fundamentalvision/Uni-Perceiver:configs/BASE (v1, 16 tasks); arXiv:2112.01522.
    """
    return _joint("uni_perceiver_base_mix16", 64, 200_000, image_px=160)


def uni_perceiver_base_mix16_224() -> RunConfig:
    """Uni-Perceiver base on sixteen tasks at 224 px, 45,000 steps: the second stage of the release.

    Batches are those of the first stage [D]. `start.weights` is a run of it, or its published weights.

    Command: allsight train uni_perceiver_base_mix16_224 data.root=... start.weights=... --gpus 8 --nodes 8
    Hardware: officially 64 GPUs. Expected: without tuning 79.2 % on ImageNet-1k, BLEU-4 32.0 and recall
    64.9 / 50.7 on COCO, 74.5 % on Kinetics-400 (published). Measured here: no.
    Source: fundamentalvision/Uni-Perceiver:README.md and configs/BASE.
    """
    return _second_stage(uni_perceiver_base_mix16(), 64, 45_000)


def uni_perceiver_moe_base_mix16() -> RunConfig:
    """Uni-Perceiver-MoE base on sixteen tasks at 160 px, 230,000 steps: experts by attributes.

    Eight experts at every linear layer of every second block, two a token, no balance loss.

    Command: allsight train uni_perceiver_moe_base_mix16 data.root=... --gpus 8 --nodes 7
    Hardware: officially 56 GPUs. Expected: no figure of this stage was published. Measured here: no.
    Source: fundamentalvision/Uni-Perceiver (branch of the Conditional MoE); arXiv:2206.04674.
    """
    return _joint("uni_perceiver_moe_base_mix16", 56, 230_000, image_px=160, experts=ExpertSettings())


def uni_perceiver_moe_base_mix16_224() -> RunConfig:
    """Uni-Perceiver-MoE base on sixteen tasks at 224 px, 50,000 steps.

    Command: allsight train uni_perceiver_moe_base_mix16_224 start.weights=... --gpus 8 --nodes 7
    Hardware: officially 56 GPUs. Expected: without tuning 80.3 % on ImageNet-1k, BLEU-4 33.2 and recall
    64.6 / 51.6 on COCO, 76.8 % on Kinetics-400 (published). Measured here: no.
    Source: fundamentalvision/Uni-Perceiver:README.md.
    """
    return _second_stage(uni_perceiver_moe_base_mix16(), 56, 50_000)


def _tuned(
    name: str, task: dict[str, Any], *, lr: float, steps: int, prompts: bool, **model: Any
) -> RunConfig:
    """One task from weights of the second stage."""
    return RunConfig(
        name=name,
        model=_base(224, prompts=PromptSettings(sides="shared", **model) if prompts else None),
        tasks=Mixture(**task),
        start=StartConfig(
            weights="uni_perceiver_base_224.pth",
            fresh=(*_NEW, "heads") if model.get("heads") else _NEW if prompts else (),
        ),
        optim=AdamW.Config(lr=lr, weight_decay=0.05, betas=(0.9, 0.95), eps=1e-6, clip_norm=0.1),
        schedule=Cosine.Config(steps=steps, warmup_steps=steps // 10),
        precision="bf16",
        eval=_EVALUATION,
    )


def _in1k(batch_size: int, fraction: float = 1.0) -> Classification.Config:
    return Classification.Config(
        data="imagefolder:in1k",
        num_classes=1000,
        tokenizer="tokenizer.json",
        interpolation="bicubic",
        randaugment=2,
        label_smoothing=0.1,
        batch_size=batch_size,
        policy=Policy(fraction=fraction),
    )


def _coco_captions(batch_size: int, fraction: float = 1.0) -> Captioning.Config:
    return Captioning.Config(
        data="coco_captions:coco",
        batch_size=batch_size,
        long_texts="cut",
        min_scale=0.5,
        beam=2,
        policy=Policy(fraction=fraction),
    )


def uni_perceiver_base_in1k_prompts() -> RunConfig:
    """Prompt tuning on 1 % of ImageNet-1k: 2,500 steps, one set of prompts for both sides, a linear head.

    Command: allsight train uni_perceiver_base_in1k_prompts data.root=... start.weights=... --gpus 8
    Hardware: officially 64 pictures a GPU; of 8 [D]. Expected: 80.9 % top-1 (published). Measured here: no.
    Source: fundamentalvision/Uni-Perceiver:README.md; arXiv:2112.01522, section 3.4. Decay, clip and warm-up
    are those of the joint run [D].
    """
    tasks = {"in1k": _in1k(512, 0.01)}
    name = "uni_perceiver_base_in1k_prompts"
    return _tuned(name, tasks, lr=1e-4, steps=2500, prompts=True, heads=("in1k",))


def uni_perceiver_base_coco_prompts() -> RunConfig:
    """Prompt tuning on 1 % of COCO's captions: 1,000 steps, one set of prompts for both sides.

    Command: allsight train uni_perceiver_base_coco_prompts data.root=... start.weights=... --gpus 8
    Hardware: 8 GPUs [D]. Expected: BLEU-4 35.5 (published). Measured here: no.
    Source: fundamentalvision/Uni-Perceiver:README.md; arXiv:2112.01522, section 3.4. Batch, decay, clip and
    warm-up are ours [D].
    """
    tasks = {"captions": _coco_captions(256, 0.01)}
    return _tuned("uni_perceiver_base_coco_prompts", tasks, lr=1e-3, steps=1000, prompts=True)


def uni_perceiver_base_in1k() -> RunConfig:
    """Fine-tuning of all weights on ImageNet-1k; the answer stays a comparison with the names.

    Command: allsight train uni_perceiver_base_in1k data.root=... start.weights=... --gpus 8
    Hardware: 8 GPUs [D]. Expected: 84.0 % top-1 (published). Measured here: no.
    Source: fundamentalvision/Uni-Perceiver:README.md (the figure). Rate, batch and steps are ours [D].
    """
    return _tuned("uni_perceiver_base_in1k", {"in1k": _in1k(1024)}, lr=2e-5, steps=25_000, prompts=False)


def uni_perceiver_base_coco() -> RunConfig:
    """Fine-tuning of all weights on COCO's captions; texts are written with a beam of 2.

    Command: allsight train uni_perceiver_base_coco data.root=... start.weights=... --gpus 8
    Hardware: 8 GPUs [D]. Expected: BLEU-4 36.4 (published). Measured here: no.
    Source: fundamentalvision/Uni-Perceiver:README.md (the figure, the beam). Rate, batch and steps are ours
    [D].
    """
    tasks = {"captions": _coco_captions(512)}
    return _tuned("uni_perceiver_base_coco", tasks, lr=2e-5, steps=10_000, prompts=False)
