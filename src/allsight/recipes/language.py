"""Uni-Perceiver on the language world and on real pictures: a small network names, describes, answers."""

from __future__ import annotations

from typing import Any

from allsight.config import Mixture, replace
from allsight.engine.config import EvalConfig, RunConfig
from allsight.engine.optim import AdamW
from allsight.engine.schedule import Cosine
from allsight.models import UniPerceiver
from allsight.tasks import VQA, Captioning, Classification, ImageTextRetrieval, MaskedLanguage

_STEPS = 13_000
_THIRD, _HALF = _STEPS // 3, _STEPS // 2
"""Between them names, pairs and captions, which are learnt by then, make room for questions."""


def uni_perceiver_micro_world() -> RunConfig:
    """Uni-Perceiver-micro on the language world: classes, captions, pairs, questions and masked words.

    Its data are what `--language` adds to a world, and its tokenizer is written with them.

    Command: allsight data world world --language 20000 && allsight train uni_perceiver_micro_world
    data.root=world
    Hardware: 2 CPU cores; an hour or less (0.3 CPU seconds a step). Expected: all bars of
    benchmarks/uniperceiver_world.py but that of relations (left of, above), which stay at chance.
    Measured here: yes, one seed, see benchmarks/results.
    Source: ours, after Uni-Perceiver (arXiv:2112.01522).
    """
    text: dict[str, Any] = {"tokenizer": "language/tokenizer.json", "size_px": 64}
    return RunConfig(
        name="uni_perceiver_micro_world",
        model=UniPerceiver.Config.variant("micro"),
        tasks=Mixture(
            names=Classification.Config(
                data="imagefolder:language/classes",
                tokenizer="language/tokenizer.json",
                share=((0, 0.3), (_THIRD, 0.3), (_HALF, 0.08)),
                size_px=64,
                crop="none",
                eval_crop=1.0,
                batch_size=32,
            ),
            captions=Captioning.Config(
                data="coco_captions:language",
                share=((0, 0.36), (_THIRD, 0.36), (_HALF, 0.25)),
                max_tokens=16,
                batch_size=32,
                **text,
            ),
            pairs=ImageTextRetrieval.Config(
                data="webdataset:language/image_text",
                share=((0, 0.12), (_THIRD, 0.12), (_HALF, 0.05)),
                max_tokens=16,
                label_smoothing=0.0,
                batch_size=64,
                group_size=64,
                **text,
            ),
            questions=VQA.Config(
                data="coco_vqa:language",
                share=((0, 0.34), (_THIRD, 0.34), (_HALF, 0.5)),
                max_tokens=16,
                batch_size=32,
                **text,
            ),
            words=MaskedLanguage.Config(
                data="manifest:language",
                with_image=True,
                share=0.05,
                max_tokens=16,
                batch_size=32,
                **text,
            ),
        ),
        optim=AdamW.Config(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, clip_norm=1.0),
        schedule=Cosine.Config(steps=_STEPS, warmup_steps=150),
        eval=EvalConfig(every_steps=_STEPS // 4, max_samples=400, batch_size=64),
    )


def uni_perceiver_micro_real() -> RunConfig:
    """Uni-Perceiver-micro on small sets of real pictures: eight tasks, in two languages.

    `composed` are cut-outs on pictures of Tiny ImageNet, with questions in English and German. With
    `model.experts={}` half of its layers have experts by attributes.

    Command: allsight data compose composed --cutouts cutouts --backgrounds imagefolder:tiny_imagenet20, then
    allsight data tokenizer composed/annotations/captions_train.json composed/texts/train.txt --vocab 1000,
    then allsight train uni_perceiver_micro_real data.root=.
    Hardware: 2 CPU cores; about half an hour. Expected: classes, counts and masked words above their trivial
    baselines; what the cut-outs are is not learnt in this time.
    Measured here: 3,000 steps, one seed; see benchmarks/uniperceiver_real.py and benchmarks/results.
    Source: ours, after Uni-Perceiver (arXiv:2112.01522).
    """
    text: dict[str, Any] = {"size_px": 64, "max_tokens": 64}
    composed = {**text, "batch_size": 32}
    small = {**text, "data": "coco_captions:coco_small", "share": 0.05, "batch_size": 16, "long_texts": "cut"}
    naming: dict[str, Any] = {
        "tokenizer": "tokenizer.json",
        "size_px": 64,
        "min_scale": 0.4,
        "batch_size": 32,
    }
    return RunConfig(
        name="uni_perceiver_micro_real",
        model=UniPerceiver.Config.variant("micro"),
        tasks=Mixture(
            tiny20=Classification.Config(
                data="imagefolder:tiny_imagenet20", share=0.2, eval_crop=1.0, **naming
            ),
            cifar10=Classification.Config(data="imagefolder:cifar10", share=0.14, eval_crop=1.0, **naming),
            captions=Captioning.Config(data="coco_captions:composed", share=0.18, **composed),
            pairs=ImageTextRetrieval.Config(
                data="coco_captions:composed", share=0.12, group_size=64, **{**composed, "batch_size": 64}
            ),
            questions=VQA.Config(data="coco_vqa:composed", share=0.2, **composed),
            words=MaskedLanguage.Config(data="text:composed/texts", share=0.06, **composed),
            coco_captions=Captioning.Config(**small),
            coco_questions=VQA.Config(**{**small, "data": "coco_vqa:coco_small"}),
        ),
        optim=AdamW.Config(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, clip_norm=1.0),
        schedule=Cosine.Config(steps=4000, warmup_steps=150),
        eval=EvalConfig(max_samples=400, batch_size=64),
    )


def uni_perceiver_world() -> RunConfig:
    """Uni-Perceiver-micro names and describes the toys of a small language world: a stage of `make demo`.

    Command: allsight demo (or: allsight data world world --language 3000 && allsight train
    uni_perceiver_world data.root=world)
    Hardware: 2 CPU cores; a minute or two. Expected: some sizes, colours and places of descriptions are
    right, names hardly ever: these take thousands of steps. Measured here: yes.
    Source: ours, after Uni-Perceiver (arXiv:2112.01522).
    """
    micro = uni_perceiver_micro_world()
    # Only canonical captions: those in other words take half as many steps more.
    captions = micro.tasks.captions.model_copy(
        update={"data": "webdataset:language/image_text", "share": 0.9}
    )
    names = micro.tasks.names.model_copy(update={"share": 0.1})
    settings = {
        "name": "uni_perceiver_world",
        "tasks": Mixture(captions=captions, names=names),
        "schedule.steps": 400,
        "schedule.warmup_steps": 30,
        "eval.every_steps": None,
        "eval.max_samples": 96,
    }
    return replace(micro, settings)


def uni_perceiver_world_smoke() -> RunConfig:
    """`uni_perceiver_world` for 2 steps: does the way from pictures to descriptions run at all?

    Command: allsight train uni_perceiver_world_smoke data.root=world
    Hardware: 1 CPU core; seconds. Expected: it ends; nothing is learned. Measured here: yes.
    Source: ours.
    """
    settings = {"name": "uni_perceiver_world_smoke", "schedule.steps": 2, "schedule.warmup_steps": 0}
    sizes = {"tasks.captions.batch_size": 4, "tasks.names.batch_size": 4, "eval.max_samples": 4}
    return replace(uni_perceiver_world(), {**settings, **sizes})
