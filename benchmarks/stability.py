"""Which stabilisers of huge nets save a deep narrow one? Each alone, on a net that fails without.

    python benchmarks/stability.py                  # all rows, three seeds; about ten minutes of one core
    python benchmarks/stability.py --rows clip      # only rows with this word

The nets are InternImages of 24 blocks, 8 and 16 channels wide. The task is to tell eight directions of noisy
stripes apart, on pictures made on the spot. The page goes to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from _page import RESULTS, write_page
from _stripes import CLASSES, Stripes

from allsight.backbones import InternImage
from allsight.config import Mixture, replace
from allsight.engine.config import RunConfig, TrainConfig
from allsight.engine.optim import SGD
from allsight.engine.schedule import Constant
from allsight.engine.trainer import RunFailed, Trainer
from allsight.launch.bench.report import Setting
from allsight.models import MultiHead

STEPS = 60
CHANCE = math.log(CLASSES)
_LOST = 1000.0
"""A loss above this ends a run."""

ROWS: dict[str, dict[str, Any]] = {
    "pre-norm, learning rate 0.5": {},
    "the same at 0.05": {"optim.lr": 0.05},
    "warm-up of 30 steps": {"schedule.warmup_steps": 30},
    "clip_norm 1": {"optim.clip_norm": 1.0},
    "clip_norm 0.1": {"optim.clip_norm": 0.1},
    "clip_value 0.01": {"optim.clip_value": 0.01},
    "clip_adaptive 0.02": {"optim.clip_adaptive": 0.02},
    "layer_scale 0.01": {"model.backbone.layer_scale": 0.01},
    "residual_init depth": {"model.backbone.residual_init": "depth"},
    "residual_init zero": {"model.backbone.residual_init": "zero"},
    "residual_init zero, clip_adaptive 0.02": {
        "model.backbone.residual_init": "zero",
        "optim.clip_adaptive": 0.02,
    },
    "drop_path 0.2": {"model.backbone.drop_path": 0.2},
    "res_post": {"model.backbone.block_norm": "res_post"},
    "post": {"model.backbone.block_norm": "post"},
    "post, layer_scale 1e-5": {
        "model.backbone.block_norm": "post",
        "model.backbone.layer_scale": 1e-5,
    },
    "post, residual_init depth": {
        "model.backbone.block_norm": "post",
        "model.backbone.residual_init": "depth",
    },
    "post, clip_adaptive 0.02": {"model.backbone.block_norm": "post", "optim.clip_adaptive": 0.02},
    "post at 0.05": {"model.backbone.block_norm": "post", "optim.lr": 0.05},
    "post at 0.05, layer_scale 1e-5": {
        "model.backbone.block_norm": "post",
        "model.backbone.layer_scale": 1e-5,
        "optim.lr": 0.05,
    },
    "bf16 at 0.05": {"optim.lr": 0.05, "precision": "bf16"},
    "bf16, clip_adaptive 0.02": {"precision": "bf16", "optim.clip_adaptive": 0.02},
}


def failing_run(seed: int = 0) -> RunConfig:
    """The first row: a net whose learning rate is ten times too large for it."""
    net = InternImage.Config(channels=8, depths=(1, 23), groups=(1, 2), out_stages=(1,), stem_stride=2)
    return RunConfig(
        name="stability",
        seed=seed,
        model=MultiHead.Config(backbone=net),
        tasks=Mixture(stripes=Stripes.Config(batch_size=32)),
        optim=SGD.Config(lr=0.5, weight_decay=0.0),
        # One step more than is run: the last step of a run is followed by an evaluation.
        schedule=Constant.Config(steps=STEPS + 1),
        train=TrainConfig(threads=1, max_skipped_in_a_row=5),
    )


def losses(config: RunConfig) -> list[float]:
    """The loss of each step; infinite from where the run is lost."""
    found: list[float] = []
    trainer = Trainer(config)
    try:
        for _, step in zip(range(STEPS), trainer, strict=False):
            found.append(step.loss)
            if not step.loss < _LOST or len(found) == STEPS:
                break
    except RunFailed:
        pass
    trainer.close()
    return found + [math.inf] * (STEPS - len(found))


def verdict(found: list[float]) -> str:
    """`trained` where the last ten losses are at most 3/4 of chance, `diverged` from twice chance on."""
    last = mean(found[-10:])
    return "diverged" if not last < 2 * CHANCE else "trained" if last <= 0.75 * CHANCE else "stalled"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", default="", help="only rows with this text")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    words = [*sys.argv[1:]] if "--out" not in sys.argv else sys.argv[1 : sys.argv.index("--out")]
    lines = ["| what is changed | outcome by seed | last loss by seed |", "|---|---|---|"]
    for name, changes in ROWS.items():
        if chosen.rows in name:
            runs = [losses(replace(failing_run(seed), changes)) for seed in chosen.seeds]
            ends = [f"{mean(found[-10:]):.2f}" for found in runs]
            lines.append(f"| {name} | {', '.join(map(verdict, runs))} | {', '.join(ends)} |")
            print(lines[-1], flush=True)
    method = f"SGD, batch 32, {STEPS} steps; last loss: mean of ten steps, where chance is {CHANCE:.2f}"
    setting = Setting.of_this_process(["python", "benchmarks/stability.py", *words], method=method)
    write_page("stability", "Stabilisers on a deep narrow net", setting, ["\n".join(lines)], chosen.out)


if __name__ == "__main__":
    main()
