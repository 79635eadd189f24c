"""Does a run take as much memory as `allsight plan` says? Three models, every strategy, two processes.

    python benchmarks/plan_memory.py

Measured is the first rank: the highest sum of PyTorch's allocations from before the model is made until two
steps are done, as its profiler saw them. That is parameters, gradients, AdamW's moments, the average of the
weights, activations, and all copies in between. The convolutions of the CPU library are switched off, since
they keep weights in a layout of their own, which no other device does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _made_ahead import TrainerOnOneBatch, batch_of, run_of
from _memory import allocated_by, mib
from _page import RESULTS, setting_of, write_page
from _ranks import is_first, leave, run_ranks

from allsight.backbones import InternImage, ResNet
from allsight.config import replace
from allsight.engine.config import RunConfig
from allsight.launch.bench.report import aligned
from allsight.launch.plan import plan_run
from allsight.models import MultiHead

SIZE_PX, ROWS = 64, 8
MODELS = {
    "InternImage-nano": InternImage.Config.variant("nano"),
    "InternImage-micro, selective": InternImage.Config.variant("micro", remat="selective"),
    "ResNet-18": ResNet.Config.variant("r18"),
}
STRATEGIES = {
    "single": {},
    "ddp": {"parallel.strategy": "ddp"},
    "fsdp": {"parallel.strategy": "fsdp"},
    "fsdp, reshard=false": {"parallel.strategy": "fsdp", "parallel.fsdp.reshard": False},
    "hsdp, shard_ranks=1": {"parallel.strategy": "hsdp", "parallel.fsdp.shard_ranks": 1},
}


def run(model: str, strategy: str) -> RunConfig:
    ranks = 1 if strategy == "single" else 2
    config = run_of(MultiHead.Config(backbone=MODELS[model]), ROWS * ranks, SIZE_PX)
    return replace(config, STRATEGIES[strategy])


def measure(out: Path) -> None:
    """One rank: all models under its strategies; the first rank writes the peaks."""
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    strategies = [name for name in STRATEGIES if (name == "single") == (world == 1)]
    # What PyTorch loads and keeps once is not the run's.
    work(run("InternImage-nano", strategies[0]))
    peaks: dict[str, int] = {}
    for model in MODELS:
        for strategy in strategies:
            config = run(model, strategy)
            with torch.backends.mkldnn.flags(enabled=False):
                peaks[f"{model}/{strategy}"] = allocated_by(partial(work, config))
            gc.collect()
            if is_first():
                print(f"{model}, {strategy}: {mib(peaks[f'{model}/{strategy}'])}", flush=True)
    if is_first():
        out.write_text(json.dumps(peaks))
    leave()


def work(config: RunConfig) -> None:
    """Make everything that a run has, and train two steps."""
    trainer = TrainerOnOneBatch(config, batch_of(ROWS, SIZE_PX), folder=None)
    for step in trainer:
        if step.number == 1:
            break
    trainer.close()


def main() -> None:
    peaks: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        for ranks in (1, 2):
            out = Path(folder) / f"{ranks}.json"
            run_ranks(__file__, "--rank", str(out), ranks=ranks)
            peaks |= json.loads(out.read_text())
    lines = [["model", "strategy", "planned", "measured", "planned / measured"]]
    worst = 0.0
    for model in MODELS:
        for strategy in STRATEGIES:
            config = run(model, strategy)
            plan = plan_run(
                config,
                gpus=1 if strategy == "single" else 2,
                kind="h100-80g",
                strategies=[config.parallel.strategy],
            )
            (choice,) = plan.choices
            assert choice.accumulate == 1
            peak = peaks[f"{model}/{strategy}"]
            worst = max(worst, abs(choice.peak / peak - 1))
            lines.append([model, strategy, mib(choice.peak), mib(peak), f"{choice.peak / peak:.3f}"])
    said = f"Largest difference: {worst:.1%}; bar: 15 %."
    setting = setting_of(__file__, f"{ROWS} pictures of {SIZE_PX} px on each rank, one thread, gloo")
    write_page("plan_memory", "Planned and measured memory", setting, [aligned(lines), said], RESULTS)


if __name__ == "__main__":
    if "--rank" in sys.argv:
        measure(Path(sys.argv[-1]))
    else:
        main()
