"""One rank of a two-process run: `python rank_run.py OUT` with torchrun's environment set."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from small_run import Signs, small_run
from spike_run import LAYOUTS, spike_run

from allsight.config import Mixture, replace
from allsight.engine.trainer import Trainer

CUT = 6


def cases() -> dict:
    """Runs that must not depend on the number of ranks."""
    found = {}
    for layout in LAYOUTS:
        lanes = {"sampling.layout": layout, "sampling.lanes": 1 if layout == "one_task" else 2}
        found[f"signs {layout}"] = replace(small_run(), lanes)
        found[f"signs {layout} accumulate"] = replace(small_run(), {**lanes, "train.accumulate": 2})
        found[f"toys {layout}"] = spike_run(layout, exact=True)
    # Half of this task's samples lie in one group of eight, seen by both ranks.
    poisoned = Mixture(a=Signs.Config(batch_size=8, poison=(5, 17)), b=Signs.Config(batch_size=8))
    found["signs poisoned"] = small_run(tasks=poisoned)
    return found


def result_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights and averages."""
    averages = {f"ema/{name}": tensor for name, tensor in trainer._ema.averages.items()}
    return {name: t.detach().clone() for name, t in trainer.model.state_dict().items()} | averages


def main(out: Path) -> None:
    torch.set_num_threads(1)
    results, metrics = {}, {}
    for name, config in cases().items():
        trainer = Trainer(replace(config, {"parallel.strategy": "ddp", "parallel.timeout_s": 60}))
        metrics[name] = trainer.fit()
        trainer.close()
        results[name] = result_of(trainer)
    config = replace(spike_run("one_task", exact=True), {"checkpoint.every_steps": CUT})
    trainer = Trainer(replace(config, {"parallel.strategy": "ddp"}), folder=out / "run")
    for step in trainer:
        if step.number + 1 == CUT:
            break
    trainer.close()
    if trainer.ranks.is_first:
        torch.save({"results": results, "metrics": metrics}, out / "two_ranks.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
