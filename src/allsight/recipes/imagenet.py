"""ImageNet classification with InternImage-T to -G, as published.

The settings are those of OpenGVLab/InternImage:classification (`config.py` and `configs/`), and for the
pre-training on ImageNet-22k, whose settings were not released, of the paper's appendix. Rates belong to 512
pictures and grow with the batch, also at the ends of warm-up and run. What differs on purpose (bf16 in place
of fp16, and details) is listed in docs/training_internimage.md.
"""

from __future__ import annotations

from typing import Any

from allsight.backbones import InternImage
from allsight.config import Mixture, replace
from allsight.engine.config import EvalConfig, RunConfig, StartConfig
from allsight.engine.optim import AdamW
from allsight.engine.parameter_groups import DCNRates, Groups
from allsight.engine.schedule import Cosine
from allsight.models import Classifier
from allsight.tasks import Classification

_AUGMENTATION: dict[str, Any] = {
    "interpolation": "bicubic",
    # rand-m9-mstd0.5-inc1; the official colour jitter of 0.4 is skipped where RandAugment is on.
    "randaugment": 2,
    "randaugment_magnitude": 9.0,
    "eval_crop": 1.0,
}
_MIXING: dict[str, Any] = {"erasing": 0.25, "mixup": 0.8, "cutmix": 1.0, "group_size": 2}


def _classifier(variant: str, *, num_classes: int, **backbone: Any) -> Classifier.Config:
    fields = Classifier.Config.variant_fields(variant)
    net = InternImage.Config.variant(variant, **backbone)
    return Classifier.Config(**{**fields, "backbone": net, "num_classes": num_classes})


def _optim(lr: float) -> AdamW.Config:
    return AdamW.Config(
        lr=lr,
        lr_is_for_batch=512,
        weight_decay=0.05,
        clip_norm=5.0,
        ema_decay=0.9999,
        ema_warmup=False,
    )


def _from_scratch(name: str, variant: str, *, drop_path: float) -> RunConfig:
    """ImageNet-1k at 224 px, 300 epochs from random weights."""
    return RunConfig(
        name=name,
        model=_classifier(variant, num_classes=1000, drop_path=drop_path),
        tasks=Mixture(
            in1k=Classification.Config(
                data="imagefolder:in1k",
                num_classes=1000,
                size_px=224,
                label_smoothing=0.1,
                batch_size=4096,
                **_AUGMENTATION,
                **_MIXING,
            )
        ),
        optim=_optim(5e-4),
        # 5e-7 and 5e-6 of 5e-4.
        schedule=Cosine.Config(
            epochs=300, warmup_epochs=20, warmup_start_ratio=1e-3, final_ratio=1e-2, spans_warmup=True
        ),
        precision="bf16",
        eval=EvalConfig(every_steps=3120),
    )


def _pre_trained(name: str, variant: str, *, drop_path: float) -> RunConfig:
    """ImageNet-22k at 192 px, 90 epochs from random weights."""
    return RunConfig(
        name=name,
        model=_classifier(variant, num_classes=21841, drop_path=drop_path),
        tasks=Mixture(
            in22k=Classification.Config(
                data="imagefolder:in22k",
                num_classes=21841,
                size_px=192,
                label_smoothing=0.1,
                batch_size=4096,
                **_AUGMENTATION,
                **_MIXING,
            )
        ),
        # 1e-3 for the batch of 4096.
        optim=_optim(1.25e-4),
        # 5e-7 and 5e-6, the official defaults, of 1.25e-4.
        schedule=Cosine.Config(
            epochs=90, warmup_epochs=5, warmup_start_ratio=4e-3, final_ratio=4e-2, spans_warmup=True
        ),
        precision="bf16",
        eval=EvalConfig(every_steps=17_300),
    )


def _fine_tuned(name: str, variant: str, *, size_px: int, drop_path: float, weights: str) -> RunConfig:
    """ImageNet-1k at a large size, 20 epochs from weights of ImageNet-22k."""
    return RunConfig(
        name=name,
        model=_classifier(variant, num_classes=1000, drop_path=drop_path, remat="block"),
        tasks=Mixture(
            in1k=Classification.Config(
                data="imagefolder:in1k",
                num_classes=1000,
                size_px=size_px,
                label_smoothing=0.3,
                batch_size=512,
                **_AUGMENTATION,
            )
        ),
        start=StartConfig(weights=weights),
        optim=_optim(2e-5),
        schedule=Cosine.Config(epochs=20, warmup_epochs=2, spans_warmup=True),
        precision="bf16",
        eval=EvalConfig(every_steps=2502),
    )


def _decaying(config: RunConfig) -> RunConfig:
    """The same with the official table of learning rates by layer."""
    rates = DCNRates(offset=0.1, center_feature_scale=0.1)
    groups = Groups(layer_decay=0.9, dcn_lr_multiplier=rates, compat="official")
    return replace(config, {"name": f"{config.name}_layer_decay", "optim.groups": groups})


def internimage_t_in1k() -> RunConfig:
    """InternImage-T on ImageNet-1k, 300 epochs at 224 px, the official recipe.

    Command: allsight train internimage_t_in1k data.root=... --gpus 8
    Hardware: officially 8 GPUs of 512 pictures each, or 32 of 128. Expected: 83.5 % top-1 (official table).
    Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/without_lr_decay/internimage_t_1k_224.yaml;
    InternImage, arXiv:2211.05778, appendix (which warms up for 5 epochs; the code for 20, as here).
    """
    return _from_scratch("internimage_t_in1k", "tiny", drop_path=0.1)


def internimage_s_in1k() -> RunConfig:
    """InternImage-S on ImageNet-1k, 300 epochs at 224 px, the official recipe.

    Command: allsight train internimage_s_in1k data.root=... --gpus 8
    Hardware: officially 8 GPUs of 512 pictures each, or 32 of 128. Expected: 84.2 % top-1 (official table).
    Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/without_lr_decay/internimage_s_1k_224.yaml;
    InternImage, arXiv:2211.05778, appendix (which warms up for 5 epochs; the code for 20, as here).
    """
    return _from_scratch("internimage_s_in1k", "small", drop_path=0.4)


def internimage_b_in1k() -> RunConfig:
    """InternImage-B on ImageNet-1k, 300 epochs at 224 px, the official recipe.

    Command: allsight train internimage_b_in1k data.root=... --gpus 8
    Hardware: officially 8 GPUs of 512 pictures each, or 32 of 128. Expected: 84.9 % top-1 (official table).
    Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/without_lr_decay/internimage_b_1k_224.yaml;
    InternImage, arXiv:2211.05778, appendix (which warms up for 5 epochs; the code for 20, as here).
    """
    return _from_scratch("internimage_b_in1k", "base", drop_path=0.5)


def internimage_l_in22k() -> RunConfig:
    """InternImage-L on ImageNet-22k (21,841 classes), 90 epochs at 192 px.

    Command: allsight train internimage_l_in22k data.root=... --gpus 8
    Hardware: not published; 8 GPUs need train.accumulate. Expected: no figure of its own was published; it is
    what `internimage_l_in1k_384` starts from. Measured here: no.
    Source: InternImage, arXiv:2211.05778, appendix: batch, rate, epochs, warm-up, augmentation, drop path.
    The rest (average, ends of the schedule) is as in the official ones for ImageNet-1k; no code was released.
    """
    return _pre_trained("internimage_l_in22k", "large", drop_path=0.1)


def internimage_xl_in22k() -> RunConfig:
    """InternImage-XL on ImageNet-22k (21,841 classes), 90 epochs at 192 px.

    Command: allsight train internimage_xl_in22k data.root=... --gpus 8
    Hardware: not published; 8 GPUs need train.accumulate. Expected: no figure of its own was published; it is
    what `internimage_xl_in1k_384` starts from. Measured here: no.
    Source: InternImage, arXiv:2211.05778, appendix: batch, rate, epochs, warm-up, augmentation, drop path.
    The rest (average, ends of the schedule) is as in the official ones for ImageNet-1k; no code was released.
    """
    return _pre_trained("internimage_xl_in22k", "xlarge", drop_path=0.2)


def internimage_l_in1k_384() -> RunConfig:
    """InternImage-L from ImageNet-22k to ImageNet-1k, 20 epochs at 384 px.

    `start.weights` (ImageNet-22k at 192 px, then 384) needs a head of 1000 classes; how to make one
    is in docs/training_internimage.md. The official file also slows offset prediction, without effect.

    Command: allsight train internimage_l_in1k_384 data.root=... start.weights=...
    Hardware: officially 32 GPUs of 16 pictures. Expected: 87.7 % top-1 (official table).
    Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/without_lr_decay/internimage_l_22kto1k_384.yaml,
    from which, its README says, the results of the paper come.
    """
    return _fine_tuned(
        "internimage_l_in1k_384",
        "large",
        size_px=384,
        drop_path=0.1,
        weights="internimage_l_22k_192to384.pth",
    )


def internimage_l_in1k_384_layer_decay() -> RunConfig:
    """InternImage-L from ImageNet-22k to ImageNet-1k at 384 px with layer decay.

    As `internimage_l_in1k_384`, but learning rates fall by 0.9 a layer towards the stem, and where offsets
    are predicted to a tenth of that.

    Command: allsight train internimage_l_in1k_384_layer_decay data.root=... start.weights=...
    Hardware: officially 32 GPUs of 16 pictures. Expected: 87.7 % top-1 without layer decay; with it none
    was published. Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/internimage_l_22kto1k_384.yaml.
    """
    return _decaying(internimage_l_in1k_384())


def internimage_xl_in1k_384() -> RunConfig:
    """InternImage-XL from ImageNet-22k to ImageNet-1k, 20 epochs at 384 px.

    `start.weights` (ImageNet-22k at 192 px, then 384) needs a head of 1000 classes; how to make one
    is in docs/training_internimage.md. The official file also slows offset prediction, without effect.

    Command: allsight train internimage_xl_in1k_384 data.root=... start.weights=...
    Hardware: officially 32 GPUs of 16 pictures. Expected: 88.0 % top-1 (official table).
    Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/without_lr_decay/internimage_xl_22kto1k_384.yaml,
    from which, its README says, the results of the paper come.
    """
    return _fine_tuned(
        "internimage_xl_in1k_384",
        "xlarge",
        size_px=384,
        drop_path=0.2,
        weights="internimage_xl_22k_192to384.pth",
    )


def internimage_xl_in1k_384_layer_decay() -> RunConfig:
    """InternImage-XL from ImageNet-22k to ImageNet-1k at 384 px with layer decay.

    As `internimage_xl_in1k_384`, but learning rates fall by 0.9 a layer towards the stem, and where offsets
    are predicted to a tenth of that.

    Command: allsight train internimage_xl_in1k_384_layer_decay data.root=... start.weights=...
    Hardware: officially 32 GPUs of 16 pictures. Expected: 88.0 % top-1 without layer decay; with it none
    was published. Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/internimage_xl_22kto1k_384.yaml.
    """
    return _decaying(internimage_xl_in1k_384())


def internimage_h_in1k_640() -> RunConfig:
    """InternImage-H from ImageNet-22k to ImageNet-1k, 20 epochs at 640 px.

    `start.weights` (427 million pictures, then ImageNet-22k) needs a head of 1000 classes; how to make one
    is in docs/training_internimage.md. The official file also slows offset prediction, without effect.

    Command: allsight train internimage_h_in1k_640 data.root=... start.weights=...
    Hardware: officially 32 GPUs of 16 pictures. Expected: 89.6 % top-1 (official table).
    Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/without_lr_decay/internimage_h_22kto1k_640.yaml,
    from which, its README says, the results of the paper come.
    """
    return _fine_tuned(
        "internimage_h_in1k_640",
        "huge",
        size_px=640,
        drop_path=0.2,
        weights="internimage_h_jointto22k_384.pth",
    )


def internimage_h_in1k_640_layer_decay() -> RunConfig:
    """InternImage-H from ImageNet-22k to ImageNet-1k at 640 px with layer decay.

    As `internimage_h_in1k_640`, but learning rates fall by 0.9 a layer towards the stem, and where offsets
    are predicted to a tenth of that.

    Command: allsight train internimage_h_in1k_640_layer_decay data.root=... start.weights=...
    Hardware: officially 32 GPUs of 16 pictures. Expected: 89.6 % top-1 without layer decay; with it none
    was published. Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/internimage_h_22kto1k_640.yaml.
    """
    return _decaying(internimage_h_in1k_640())


def internimage_g_in1k_512() -> RunConfig:
    """InternImage-G from ImageNet-22k to ImageNet-1k, 20 epochs at 512 px.

    `start.weights` (427 million pictures, then ImageNet-22k) needs a head of 1000 classes; how to make one
    is in docs/training_internimage.md. The official file also slows offset prediction, without effect.

    Command: allsight train internimage_g_in1k_512 data.root=... start.weights=...
    Hardware: officially 64 GPUs of 8 pictures. Expected: 90.1 % top-1 (official table).
    Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/without_lr_decay/internimage_g_22kto1k_512.yaml,
    from which, its README says, the results of the paper come.
    """
    return _fine_tuned(
        "internimage_g_in1k_512",
        "giant",
        size_px=512,
        drop_path=0.4,
        weights="internimage_g_pretrainto22k_384.pth",
    )


def internimage_g_in1k_512_layer_decay() -> RunConfig:
    """InternImage-G from ImageNet-22k to ImageNet-1k at 512 px with layer decay.

    As `internimage_g_in1k_512`, but learning rates fall by 0.9 a layer towards the stem, and where offsets
    are predicted to a tenth of that.

    Command: allsight train internimage_g_in1k_512_layer_decay data.root=... start.weights=...
    Hardware: officially 64 GPUs of 8 pictures. Expected: 90.1 % top-1 without layer decay; with it none
    was published. Measured here: no.
    Source: OpenGVLab/InternImage:classification/configs/internimage_g_22kto1k_512.yaml.
    """
    return _decaying(internimage_g_in1k_512())
