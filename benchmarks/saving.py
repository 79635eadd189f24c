"""How long does a checkpoint keep training waiting, written beside it or in its way? And a resumed run?

    python benchmarks/saving.py

The state of an InternImage-S with AdamW and an average of the weights is over 500 MB. It is saved in turns
with `checkpoint.asynchronous` true and false; in between it waits until everything is written. What is noted
is how long `save` kept training. The first save beside training also makes room for copies; it stands apart.

Resuming is timed in fresh processes, from the start of Python to the end of the first step after the restart,
for an InternImage-micro.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from _made_ahead import TrainerOnOneBatch, batch_of, run_of
from _page import RESULTS, setting_of, write_page

from allsight.backbones import InternImage
from allsight.config import replace
from allsight.engine.saving import Saving
from allsight.launch.bench.measure import upper_bound
from allsight.launch.bench.report import aligned
from allsight.models import MultiHead

PAIRS, RESUMES = int(os.environ.get("PAIRS", "8")), int(os.environ.get("RESUMES", "3"))


def trainer_of(variant: str, folder: Path, *, resume: bool = False) -> TrainerOnOneBatch:
    model = MultiHead.Config(backbone=InternImage.Config.variant(variant))
    config = run_of(model, 2, 64)
    return TrainerOnOneBatch(config, batch_of(2, 64), folder=folder, resume=resume)


def blocked(folder: Path) -> tuple[int, float, list[float], list[float]]:
    """(bytes, first save beside training, further ones, those in its way), in seconds."""
    trainer = trainer_of("small", folder)
    next(iter(trainer))
    state = trainer._state.tensors(trainer.step)
    number = 0
    seconds: dict[bool, list[float]] = {True: [], False: []}
    ways = {}
    for asynchronous in (True, False):
        config = replace(trainer.config, {"checkpoint.asynchronous": asynchronous}).checkpoint
        ways[asynchronous] = Saving(folder / "checkpoints", config, trainer.ranks, trainer.events)
    for turn in range(PAIRS + 1):
        for asynchronous in (True, False) if turn % 2 else (False, True):
            number += 1
            begun = time.perf_counter()
            ways[asynchronous].save(number, state)
            seconds[asynchronous].append(time.perf_counter() - begun)
            ways[asynchronous].finish()
    for way in ways.values():
        way.close()
    trainer.close()
    size = sum(tensor.nbytes for tensor in state.values())
    return size, seconds[True][0], seconds[True][1:], seconds[False][1:]


def resumed(folder: Path) -> list[float]:
    """Seconds from the start of a process to the end of the first step it goes on with."""
    trainer = trainer_of("micro", folder)
    next(iter(trainer))
    trainer.save()
    trainer.close()
    found = []
    for _ in range(RESUMES):
        begun = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--resume", str(folder)], check=True)
        found.append(time.perf_counter() - begun)
    return found


def main() -> None:
    with TemporaryDirectory() as folder:
        size, first, beside, in_the_way = blocked(Path(folder) / "run")
        resumes = resumed(Path(folder) / "micro")
    ratios = np.array(beside) / np.array(in_the_way)
    lines = [
        ["what", "seconds, median", "share of the synchronous save", "97.5 % bound", "bar"],
        ["synchronous save", f"{median(in_the_way):.2f}", "1", "", ""],
        ["asynchronous save, training waits", f"{median(beside):.2f}", f"{np.median(ratios):.3f}",
         f"{upper_bound(ratios):.3f}", "<= 0.35"],
        ["the first asynchronous save", f"{first:.2f}", f"{first / median(in_the_way):.3f}", "", ""],
    ]  # fmt: skip
    after = [
        ["resume to the end of the first step", "seconds", "bar"],
        ["InternImage-micro, fresh process, median", f"{median(resumes):.1f}", "<= 10"],
        ["InternImage-micro, fresh process, slowest", f"{max(resumes):.1f}", ""],
    ]
    method = f"{PAIRS} pairs of saves of {size / 1e6:,.0f} MB in turns; {RESUMES} fresh processes"
    setting = setting_of(__file__, method)
    write_page("saving", "Checkpoints beside training", setting, [aligned(lines), aligned(after)], RESULTS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--resume" in sys.argv:
        again = trainer_of("micro", Path(sys.argv[-1]), resume=True)
        assert next(iter(again)).number == 1
        # Ends without the orderly close of a run, as its first step is over.
        os._exit(0)
    main()
