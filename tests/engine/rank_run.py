"""One rank of a two-process run: `python rank_run.py OUT` with torchrun's environment set."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from small_run import Signs, small_run
from spike_run import LAYOUTS, spike_run

from allsight.config import Mixture, replace
from allsight.engine.joining import RanksMissing
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
    averages = {f"ema/{name}": tensor for name, tensor in trainer._updater.ema.averages.items()}
    return {name: t.detach().clone() for name, t in trainer.model.state_dict().items()} | averages


def moving_run():
    """A run that changes its number of ranks; its temporal state and averages move with it."""
    return replace(spike_run("one_task", exact=True), {"checkpoint.every_steps": 4, "eval.max_samples": 2})


def move(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the weights of a run on two ranks, then on one, then on two again, four steps each."""
    rank, losses = int(os.environ["RANK"]), []
    for part, world in enumerate((2, 1, 2)):
        if rank < world:
            os.environ["WORLD_SIZE"] = str(world)
            config = replace(moving_run(), {"parallel.strategy": "ddp"})
            trainer = Trainer(config, folder=folder, resume="if saved")
            assert (trainer.step, trainer.ranks.world) == (4 * part, world)
            for step in trainer:
                losses.append(step.loss)
                if len(losses) % 4 == 0:
                    break
            trainer.close()
            result = result_of(trainer)
            os.environ["WORLD_SIZE"] = "2"
        dist.barrier()
    return losses, result


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
    moved = move(out / "moved")
    said = {"results": results, "metrics": metrics, "moved": moved, "missing": miss(trainer.ranks)}
    torch.save(said, out / "two_ranks.pt")


def miss(ranks) -> str:
    """What the first rank says when the other one ends without a word."""
    if not ranks.is_first:
        os._exit(0)
    try:
        with ranks.noticing_loss():
            ranks.gather("still there?")
    except RanksMissing as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
