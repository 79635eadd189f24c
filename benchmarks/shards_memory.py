"""How much of the training state does a rank hold when it is sharded over four?

    python benchmarks/shards_memory.py

Counted are the bytes that rank 0 holds between steps, of an InternImage-micro with AdamW and an average of
the weights, under `ddp` and `fsdp` on four gloo processes. Sizes that four ranks cannot share evenly are
rounded up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _made_ahead import TrainerOnOneBatch, batch_of, run_of
from _memory import mib
from _page import RESULTS, setting_of, write_page
from _ranks import is_first, leave, run_ranks

from allsight.backbones import InternImage
from allsight.config import replace
from allsight.launch.bench.report import aligned
from allsight.models import MultiHead

RANKS = 4
PARTS = ("parameters", "gradients", "optimiser", "average")


def measure(out: Path) -> None:
    """One rank: what it holds under both strategies after a step."""
    torch.set_num_threads(1)
    found = {}
    for strategy in ("ddp", "fsdp"):
        model = MultiHead.Config(backbone=InternImage.Config.variant("micro"))
        config = replace(run_of(model, 2 * RANKS, 64), {"parallel.strategy": strategy})
        trainer = TrainerOnOneBatch(config, batch_of(2, 64), folder=None)
        next(iter(trainer))
        found[strategy] = trainer.held_bytes()
        trainer.close()
    if is_first():
        out.write_text(json.dumps(found))
    leave()


def main() -> None:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        run_ranks(__file__, "--rank", str(out), ranks=RANKS)
        found = json.loads(out.read_text())
    lines = [["what", "ddp", "fsdp", "fsdp / ddp"]]
    rows = {name: [found[s][name] for s in ("ddp", "fsdp")] for name in PARTS}
    rows["parameters and optimiser"] = [
        sum(rows[name][column] for name in ("parameters", "optimiser")) for column in (0, 1)
    ]
    lines += [[name, mib(a), mib(b), f"{b / a:.3f}"] for name, (a, b) in rows.items()]
    setting = setting_of(__file__, f"{RANKS} gloo processes, one thread each, after one step; rank 0")
    note = "Bar for parameters and optimiser: <= 0.30."
    write_page(
        "shards_memory", "State of a rank under DDP and FSDP", setting, [aligned(lines), note], RESULTS
    )


if __name__ == "__main__":
    if "--rank" in sys.argv:
        measure(Path(sys.argv[-1]))
    else:
        main()
