"""Does a run take as much memory as `allsight plan` says? Three models, every strategy, two processes.

    python benchmarks/plan_memory.py

Measured is the first rank, in fresh processes for each run: the highest sum of PyTorch's allocations from
before the model is made until two steps are done, as its profiler saw them. That is parameters, gradients,
AdamW's moments, the average of the weights, activations, and all copies in between. The convolutions of the
CPU library are switched off, since they keep weights in a layout of their own, which no other device does.
"""

from __future__ import annotations

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


def measure(model: str, strategy: str, out: Path) -> None:
    """One rank of one run; the first rank writes the peak."""
    torch.set_num_threads(1)
    with torch.backends.mkldnn.flags(enabled=False):
        peak = allocated_by(partial(work, run(model, strategy)))
    if is_first():
        out.write_text(str(peak))
    leave()


def work(config: RunConfig) -> None:
    """Make everything that a run has, and train two steps."""
    trainer = TrainerOnOneBatch(config, batch_of(ROWS, SIZE_PX), folder=None)
    for step in trainer:
        if step.number == 1:
            break
    trainer.close()


def measured(model: str, strategy: str) -> int:
    """Bytes at the peak, in fresh processes."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "peak"
        run_ranks(__file__, "--rank", model, strategy, str(out), ranks=1 if strategy == "single" else 2)
        return int(out.read_text())


def main() -> None:
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
                copies=True,
            )
            (choice,) = plan.choices
            assert choice.accumulate == 1
            peak = measured(model, strategy)
            worst = max(worst, abs(choice.peak / peak - 1))
            print(f"{model}, {strategy}: planned {mib(choice.peak)}, measured {mib(peak)}", flush=True)
            lines.append([model, strategy, mib(choice.peak), mib(peak), f"{choice.peak / peak:.3f}"])
    said = f"Largest difference: {worst:.1%}; bar: 15 %."
    setting = setting_of(__file__, f"{ROWS} pictures of {SIZE_PX} px on each rank, one thread, gloo")
    write_page("plan_memory", "Planned and measured memory", setting, [aligned(lines), said], RESULTS)


if __name__ == "__main__":
    if "--rank" in sys.argv:
        asked_model, asked_strategy, file = sys.argv[-3:]
        measure(asked_model, asked_strategy, Path(file))
    else:
        main()
