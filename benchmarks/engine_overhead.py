"""What do the engine's guards, events and contracts cost, against a bare loop doing the same arithmetic?

    python benchmarks/engine_overhead.py

One process, one thread; both loops take turns of ten steps on the same model, batches, optimiser, clipping
and weight average. The figure is the ratio of thread CPU times of neighbouring turns: median, and the upper
end of a 95 % bootstrap interval of it. The data is made ahead, so that only the loop is compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from _made_ahead import TrainerOnOneBatch, batch_of, run_of
from _page import RESULTS, setting_of, write_page

from allsight.backbones import InternImage
from allsight.engine.parameter_groups import parameter_groups
from allsight.engine.trainer import Trainer
from allsight.launch.bench.measure import interleave, upper_bound
from allsight.launch.bench.report import aligned
from allsight.models import MultiHead
from allsight.types import Batch

TURNS, STEPS = 60, 10


def bare_loop(trainer: Trainer, batch: Batch) -> Iterator[float]:
    """The least code that trains the same way: clip, average of weights, loss as a number."""
    model, config = trainer.model, trainer.config.optim
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, foreach=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in parameters]
    while True:
        loss = F.cross_entropy(model(batch)[0]["logits"], batch.targets["label"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1e-3)
        yield float(loss.detach())


def measure(
    batch_size: int, size_px: int, folder: Path, *, turns: int = TURNS, steps: int = STEPS
) -> tuple[float, float, float]:
    """(milliseconds of a bare step, median ratio, its upper bound)."""
    model = MultiHead.Config(backbone=InternImage.Config.variant("nano"))
    batch = batch_of(batch_size, size_px)
    trainer = TrainerOnOneBatch(run_of(model, batch_size, size_px), batch, folder=folder)
    loops = {"engine": iter(trainer), "bare": bare_loop(trainer, batch)}
    ways = {name: partial(next, loop) for name, loop in loops.items()}
    samples = interleave(ways, pairs=turns, calls=steps)
    trainer.close()
    ratios = samples.ratios("engine", "bare")
    return 1e3 * samples.median("bare"), float(np.median(ratios)), upper_bound(ratios)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    lines = [["batch", "step, ms", "engine / bare, median", "97.5 % bound", "bar of the bound"]]
    for batch_size, size_px, bar in ((4, 64, "< 1.10"), (16, 64, ""), (32, 96, "< 1.03")):
        with TemporaryDirectory() as folder:
            milliseconds, ratio, bound = measure(batch_size, size_px, Path(folder) / "run")
        batch = f"{batch_size} x {size_px} px"
        lines.append([batch, f"{milliseconds:.0f}", f"{ratio:.3f}", f"{bound:.3f}", bar])
    method = f"{TURNS} turns of {STEPS} steps each, ratios of neighbouring turns; one thread"
    setting = setting_of(__file__, method)
    write_page("engine_overhead", "Cost of the engine", setting, [aligned(lines)], RESULTS)


if __name__ == "__main__":
    main()
