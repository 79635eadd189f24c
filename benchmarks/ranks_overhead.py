"""What does the engine cost on two processes, against a bare script of PyTorch's DDP or FSDP2?

    python benchmarks/ranks_overhead.py

Two gloo processes of one thread each. In both, the trainer and the bare loop take turns of a few steps: the
same model, batch, optimiser, clipping and weight average. The engine also writes its events, statistics of
each task and norms, and checks that all is finite on all ranks. The figures are ratios of neighbouring turns,
median and upper end of its 95 % bootstrap interval: of the CPU time of both processes, all threads, which
other programs on the machine hardly change, and of the wall time, which they do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from _made_ahead import TrainerOnOneBatch, batch_of, run_of
from _page import RESULTS, setting_of, write_page
from _ranks import is_first, leave, run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from allsight.backbones import InternImage
from allsight.config import replace
from allsight.engine.parameter_groups import parameter_groups
from allsight.engine.trainer import Trainer
from allsight.launch.bench.measure import upper_bound
from allsight.launch.bench.report import aligned
from allsight.models import MultiHead
from allsight.models.base import TaskModel, model_for_tasks
from allsight.types import Batch

STRATEGIES = ("ddp", "fsdp")
ROWS, SIZE_PX = 32, 96


def bare_loop(model: TaskModel, trainer: Trainer, batch: Batch, strategy: str) -> Iterator[None]:
    """The least code that trains the same way."""
    config = trainer.config.optim
    if strategy == "ddp":
        module = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        backbone: torch.nn.Module = model.backbone  # type: ignore[assignment]
        for block in backbone.blocks_in_order():  # type: ignore[operator]
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        module = model
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, foreach=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in parameters]
    while True:
        loss = F.cross_entropy(module(batch)[0]["logits"], batch.targets["label"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm or 1.0, foreach=True)
        if isinstance(norm, DTensor):
            norm.full_tensor()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1e-3)
        # A script that shows its loss, over both ranks.
        shown = loss.detach().clone()
        dist.all_reduce(shown)
        shown.item()
        yield


def measure(out: Path, turns: int, calls: int) -> None:
    """One rank: both loops in turns under every strategy; the first one writes what came out."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for strategy in STRATEGIES:
        config = replace(
            run_of(MultiHead.Config(backbone=InternImage.Config.variant("nano")), 2 * ROWS, SIZE_PX),
            {"parallel.strategy": strategy},
        )
        batch = batch_of(ROWS, SIZE_PX)
        trainer = TrainerOnOneBatch(config, batch, folder=out.parent / f"run-{strategy}")
        model = model_for_tasks(config.model, trainer.tasks).train()
        bare = bare_loop(model, trainer, batch, strategy)
        ways: dict[str, Callable[[], object]] = {
            "engine": iter(trainer).__next__,
            "bare": bare.__next__,
        }
        found[strategy] = turns_of(ways, turns, calls)
        trainer.close()
    if is_first():
        out.write_text(json.dumps(found))
    leave()


def turns_of(ways: dict[str, Callable[[], object]], turns: int, calls: int) -> dict[str, list[list[float]]]:
    """Way -> (wall, CPU of both processes) seconds a step of each turn; the first turn is not counted."""
    samples: dict[str, list[list[float]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls if turn else 2):
                ways[name]()
            took = torch.tensor([time.process_time() - cpu], dtype=torch.float64)
            wall = time.perf_counter() - wall
            dist.all_reduce(took)
            if turn:
                samples[name].append([wall / calls, float(took) / calls])
    return samples


def main() -> None:
    turns, calls = (int(os.environ.get(name, default)) for name, default in (("TURNS", 20), ("CALLS", 4)))
    with TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        run_ranks(__file__, "--rank", str(out), str(turns), str(calls), ranks=2)
        found = json.loads(out.read_text())
    head = [
        "strategy",
        "bare step, ms CPU",
        "CPU, median",
        "CPU, 97.5 % bound",
        "wall, median",
        "wall, 97.5 % bound",
    ]
    lines = [head]
    for strategy, samples in found.items():
        engine, bare = np.array(samples["engine"]), np.array(samples["bare"])
        cells = [strategy, f"{1e3 * np.median(bare[:, 1]) / 2:.0f}"]
        for column in (1, 0):
            ratios = engine[:, column] / bare[:, column]
            cells += [f"{np.median(ratios):.3f}", f"{upper_bound(ratios):.3f}"]
        lines.append(cells)
    method = f"{turns} turns of {calls} steps each; {ROWS} pictures of {SIZE_PX} px on each of 2 ranks, gloo"
    note = "Ratios of engine to bare script. Bar: 97.5 % bound <= 1.03."
    setting = setting_of(__file__, method)
    write_page(
        "ranks_overhead", "Cost of the engine on two processes", setting, [aligned(lines), note], RESULTS
    )


if __name__ == "__main__":
    if "--rank" in sys.argv:
        measure(Path(sys.argv[-3]), int(sys.argv[-2]), int(sys.argv[-1]))
    else:
        main()
