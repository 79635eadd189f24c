"""One run that mixes all kinds of tasks: thirteen pairs of a task and a data set, and what each costs.

    python benchmarks/many_pairs.py --data FOLDER [--steps 130]

`FOLDER` holds tiny_imagenet20, cifar10, coco_small and camvid; the generated world and its drives are made
here. One model of four parts sees all of them: a generalist that reads queries, a network with heads, M3I,
and BEVFormer. Small networks on purpose: the question is what the data cost, not what is learned. The table
is that of the run's report.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _page import RESULTS, setting_of, write_page

from allsight.backbones import InternImage
from allsight.config import Mixture, dump, dump_yaml, replace
from allsight.engine.config import DataConfig, EvalConfig, RunConfig
from allsight.engine.optim import AdamW
from allsight.engine.schedule import Cosine
from allsight.launch.bench.report import aligned
from allsight.models import MultiHead, Parts, UniPerceiver
from allsight.recipes import find_config
from allsight.tasks import VQA, Captioning, Classification, ImageTextRetrieval, SemanticSegmentation
from allsight.tasks.masked_language import MaskedLanguage
from allsight.view.record import read_run

READS_QUERIES = ("tiny20", "cifar10", "toys", "captions", "pairs", "questions", "words", "words_seen")
HAS_HEADS = ("streets", "scenes")
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car")
CAMVID += ("pedestrian", "bicyclist")


def pairs(made: Path, data: Path, steps: int) -> RunConfig:
    """The run. `made` holds the world, its drives and a tokenizer, `data` the pictures of others."""
    m3i, driving = find_config("m3i_micro")[0], find_config("bevformer_micro_smoke")[0]
    tokens = str(made / "tokenizer.json")
    text: dict[str, Any] = {"tokenizer": tokens, "size_px": 64, "max_tokens": 64, "batch_size": 16}
    named: dict[str, Any] = {"tokenizer": tokens, "size_px": 64, "batch_size": 32}
    wide: dict[str, Any] = {"canvas_hw_px": (96, 96), "head_channels": 32, "batch_size": 8}
    coco = "coco_captions:coco_small"
    drives = {f"tasks.{task}.data": f"nuscenes:{made / 'drives'}" for task in driving.tasks}
    tasks: dict[str, Any] = {
        "tiny20": Classification.Config(data="imagefolder:tiny_imagenet20", **named),
        "cifar10": Classification.Config(data="imagefolder:cifar10", **named),
        "toys": Classification.Config(data=f"imagefolder:{made / 'world' / 'imagefolder'}", **named),
        "captions": Captioning.Config(data=coco, **text),
        "pairs": ImageTextRetrieval.Config(data=coco, group_size=16, **text),
        "questions": VQA.Config(data="coco_vqa:coco_small", **text),
        "words": MaskedLanguage.Config(data=coco, data_options=Mixture(pictures=False), **text),
        "words_seen": MaskedLanguage.Config(data=coco, with_image=True, **text),
        "streets": SemanticSegmentation.Config(
            data="label_maps:camvid", ignore_label=11, classes=CAMVID, **wide
        ),
        "scenes": SemanticSegmentation.Config(
            data=f"label_maps:{made / 'world' / 'label_maps'}", crop_hw_px=(64, 64), **wide
        ),
        "views": m3i.tasks["tiny20"],
        **replace(driving, drives).tasks,
    }
    part_of = {name: "queries" for name in READS_QUERIES} | {name: "heads" for name in HAS_HEADS}
    part_of |= {"views": "m3i"} | {name: "rig" for name in driving.tasks}
    return RunConfig(
        name="many_pairs",
        model=Parts.Config(
            parts=Mixture(
                queries=UniPerceiver.Config.variant("micro"),
                heads=MultiHead.Config(backbone=InternImage.Config.variant("nano")),
                m3i=m3i.model,
                rig=driving.model,
            ),
            route=Mixture(part_of),
        ),
        tasks=Mixture(tasks),
        optim=AdamW.Config(lr=1e-3, clip_norm=5.0),
        schedule=Cosine.Config(steps=steps, warmup_steps=5),
        data=DataConfig(root=str(data), workers=1),
        eval=EvalConfig(max_samples=8, pictures=0),
    )


def make(place: Path, data: Path) -> None:
    """World, drives and tokenizer, by the commands that everybody has."""
    captions = data / "coco_small" / "annotations" / "captions_train.json"
    for words in (
        ["world", str(place / "world"), "--pictures", "240"],
        ["drives", str(place / "drives"), "--scenes", "2", "--frames", "4"],
        ["tokenizer", str(captions), "--vocab", "2000", "--out", str(place / "tokenizer.json")],
    ):
        subprocess.run([sys.executable, "-m", "allsight.cli", "data", *words], check=True)


def table(folder: Path) -> list[list[str]]:
    """What each pair cost, from the run's events."""
    record = read_run(folder)
    total_s = _sum(record.steps["seconds"])
    rows = [["pair", "samples", "read, ms", "transform, ms", "collate, ms", "kB", "waited, of step time"]]
    for name, task in record.tasks.items():
        samples = _sum(task.data["samples"])
        each = [1000 * _sum(task.data[part]) / samples for part in ("read_s", "transform_s", "collate_s")]
        kilobytes = _sum(task.data["bytes"]) / samples / 1e3
        wait = 100 * _sum(task.data["wait_s"]) / total_s
        rows.append(
            [name, f"{samples:.0f}", *(f"{ms:.2f}" for ms in each), f"{kilobytes:.0f}", f"{wait:.1f} %"]
        )
    return rows


def _sum(series: Any) -> float:
    return float(np.nansum(series.y()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--steps", type=int, default=130)
    parser.add_argument(
        "--made", type=Path, help="folder with world, drives and tokenizer of an earlier call"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        made = options.made or Path(folder)
        if not (made / "tokenizer.json").is_file():
            made.mkdir(parents=True, exist_ok=True)
            make(made, options.data)
        recipe = Path(folder) / "many_pairs.yaml"
        recipe.write_text(dump_yaml(dump(pairs(made, options.data, options.steps))))
        words = ["train", str(recipe), "--runs", folder, "--quiet"]
        subprocess.run([sys.executable, "-m", "allsight.cli", *words], check=True)
        rows = table(Path(folder) / "many_pairs")
    setting = setting_of(__file__, f"one run of {options.steps} steps, one data worker")
    write_page(
        "many_pairs", "Many pairs of a task and a data set in one run", setting, [aligned(rows)], options.out
    )


if __name__ == "__main__":
    main()
