"""A run that may be killed at any moment: `python killed_run.py FOLDER WORKERS`. Goes on where it can."""

import sys
from pathlib import Path

import torch
from rank_run import result_of
from spike_run import spike_run

from allsight.config import replace
from allsight.engine.checkpoint import list_checkpoints
from allsight.engine.trainer import Trainer


def config(workers: int):
    return replace(
        spike_run("mixed_lanes"),
        {"schedule.steps": 120, "checkpoint.every_steps": 3, "eval.max_samples": 12, "data.workers": workers},
    )


if __name__ == "__main__":
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    has_checkpoint = bool(list_checkpoints(folder / "checkpoints"))
    trainer = Trainer(config(workers), folder=folder, resume=has_checkpoint)
    for _ in trainer:
        pass
    trainer.close()
    torch.save(result_of(trainer), folder / "result.pt")
