"""One rank of runs under DeepSpeed: `python deepspeed_run.py OUT [NAME..]`, torchrun's environment set."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from blocks_run import blocks_run

from allsight.config import ConfigError, replace
from allsight.engine.optim import AdamW
from allsight.engine.trainer import Trainer

CUT = 4
STAGES = (0, 1, 2, 3)

FEATURES = {
    "skipped step": {"tasks.a.poison": (3,), "optim.ema_decay": None},
    "bf16": {"precision": "bf16", "optim.ema_decay": None},
    "offload": {"parallel.deepspeed.offload": True, "optim.ema_decay": None},
}


def deepspeed_run(stage, **changes):
    """All layers used, in float32: accumulation, clipping that acts, a weight that the model clamps."""
    found = {
        "tasks.b": None,
        "model.unused": False,
        # Stage 3 cannot shard what has no axes, and keeps no average.
        "model.scalar": stage != 3,
        "precision": "fp32",
        "train.accumulate": 2,
        "schedule.steps": 8,
        "optim": AdamW.Config(lr=0.01, clip_norm=0.1, ema_decay=None if stage == 3 else 0.9),
        "checkpoint.every_steps": CUT,
        "parallel.deepspeed.stage": stage,
        "parallel.timeout_s": 60,
    }
    return replace(replace(blocks_run(), found), changes)


def deepspeed_runs():
    """Name -> the run as one process makes it."""
    runs = {f"stage {stage}": deepspeed_run(stage) for stage in STAGES}
    for feature, changes in FEATURES.items():
        for stage in STAGES[1:]:
            runs[f"stage {stage}, {feature}"] = deepspeed_run(stage, **changes)
    return runs


def resumed_run(stage):
    """The same for all stages, so that one can go on from what another left."""
    return deepspeed_run(stage, **{"model.scalar": False, "optim.ema_decay": None})


def over_ranks(config, folder):
    """The same under DeepSpeed; with stage 3 no weight is too small to be parted."""
    found = {"parallel.strategy": "deepspeed"}
    if config.parallel.deepspeed.stage == 3:
        offload = {"device": "cpu"}
        is_offloaded = config.parallel.deepspeed.offload
        parts = {"offload_optimizer": offload, "offload_param": offload} if is_offloaded else {}
        file = folder / ("zero3-offload.json" if is_offloaded else "zero3.json")
        file.write_text(
            json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, **parts}})
        )
        found["parallel.deepspeed.file"] = str(file)
    return replace(config, found)


def result_of(trainer):
    """Whole weights, averages and moments."""
    return {
        name: tensor.detach().clone()
        for name, tensor in trainer._state.tensors(0).items()
        if name.startswith(("model/", "ema/", "optim/"))
    }


def outcome_of(config, folder=None, **options):
    """Weights, results of each step and metrics of a run."""
    trainer = Trainer(config, folder=folder, **options)
    steps = [(s.number, s.loss, s.grad_norm, s.lr, s.skipped) for s in trainer]
    found = {"weights": result_of(trainer), "steps": steps, "metrics": trainer.evaluate()}
    trainer.close()
    return found


def begin(config, folder):
    """Run until the first checkpoint."""
    trainer = Trainer(config, folder=folder)
    for step in trainer:
        if step.number + 1 == CUT:
            break
    trainer.close()


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    found = {}
    for name, config in deepspeed_runs().items():
        if not names or name in names:
            found[name] = outcome_of(over_ranks(config, out))
    if not names or "unused" in names:
        config = replace(over_ranks(deepspeed_run(1), out), {"model.unused": True})
        try:
            outcome_of(config)
        except ConfigError as error:
            found["unused"] = str(error)
    if not names or "resume" in names:
        for stage in STAGES:
            begin(over_ranks(resumed_run(stage), out), out / f"from-{stage}")
        for stage in STAGES:
            before = (stage + 1) % len(STAGES)
            config = over_ranks(resumed_run(stage), out)
            found[f"stage {stage} after stage {before}"] = outcome_of(
                config, out / f"from-{before}", resume=True
            )
        # From what one process has left beside.
        config = over_ranks(resumed_run(2), out)
        found["stage 2 after one process"] = outcome_of(config, out / "from-one", resume=True)
    if int(os.environ["RANK"]) == 0:
        torch.save(found, out / "outcomes.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
