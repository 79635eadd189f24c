"""What do large sets of candidates cost: time of a step where targets are frozen, memory where ranks share?

    python benchmarks/target_sets.py
    python benchmarks/target_sets.py --only memory
    python benchmarks/target_sets.py --quick                 # small sets, 2 rounds: does it run?

- `frozen`: a step of prompt tuning in which candidates learn nothing (`sides: queries`), with 20 names and
  with 20,000. Their features are kept, so that a step costs a product more. The bar: at most 1.3 times.
- `memory`: a step that trains candidates, on one gloo process and on two that encode half of the set each.
  Counted is what PyTorch allocates at its highest point above weights and data, of rank 0. The bar: about
  half.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from _generalist import model_of, naming, pass_of, settings, tokens_of
from _memory import allocated_by, mib
from _page import RESULTS, setting_of, write_page
from _ranks import is_first, leave, run_ranks

from allsight.launch.bench.measure import interleave, upper_bound
from allsight.launch.bench.report import aligned
from allsight.models import UniPerceiver
from allsight.models.uniperceiver import PromptSettings
from allsight.types import Query

PARTS = ("frozen", "memory")
SIZE_PX, WORDS = 64, 4
FEW, MANY = 20, 20_000
BAR = 1.3
Rows = list[list[str]]


def step_of(model: UniPerceiver, query: Query) -> Callable[[], None]:
    """A whole training step."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)
    both = pass_of(model, query)

    def step() -> None:
        both()
        optimiser.step()

    return step


def frozen(rounds: int, *, quick: bool) -> Rows:
    """Rows of the table: steps with few and with many names."""
    many = 100 if quick else MANY
    prompts = PromptSettings(sides="queries", norms=False, spe=False)
    model = model_of(settings(prompts=prompts))
    found: Rows = [
        ["pictures", "tokens", f"{FEW} names", f"{many:,} names", "ratio", "95 % of the median", "bar"]
    ]
    for rows in (2,) if quick else (8, 32, 64):
        queries = {count: naming(rows, SIZE_PX, names=count, length=WORDS) for count in (FEW, many)}
        timed = interleave({str(n): step_of(model, q) for n, q in queries.items()}, pairs=rounds, calls=1)
        ratios = timed.ratios(str(many), str(FEW))
        found.append(
            [
                str(rows),
                str(tokens_of(model, queries[FEW])),
                *(f"{1000 * timed.median(str(n)):.0f} ms" for n in queries),
                f"{timed.ratio(str(many), str(FEW)):.3f}",
                f"{-upper_bound(-ratios):.2f} .. {upper_bound(ratios):.2f}",
                f"<= {BAR}",
            ]
        )
    return found


def measure_memory(out: Path, names: int) -> None:
    """One rank: its highest point in a step that trains so many candidates."""
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    model = model_of(settings())
    step = pass_of(model, naming(8, SIZE_PX, names=names, length=WORDS))
    step()
    model.zero_grad(set_to_none=True)
    peak = allocated_by(step)
    if is_first():
        out.write_text(json.dumps(peak))
    leave()


def memory(*, quick: bool) -> Rows:
    """Rows of the table: peaks on one rank and on two."""
    found: Rows = [["names", "one rank", "two ranks", "ratio", "bar"]]
    for names in (1100,) if quick else (1100, 4000):
        peaks = []
        for ranks in (1, 2):
            with TemporaryDirectory() as folder:
                out = Path(folder) / "peak.json"
                run_ranks(__file__, "--rank", str(names), str(out), ranks=ranks)
                peaks.append(json.loads(out.read_text()))
        found.append([f"{names:,}", *map(mib, peaks), f"{peaks[1] / peaks[0]:.3f}", "about 0.5"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="small sets, 2 rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", default="", help="a line for the page, such as what else the machine did")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if chosen.quick else chosen.rounds
    parts = []
    if "frozen" in chosen.only:
        parts += ["Steps with frozen targets:", aligned(frozen(rounds, quick=chosen.quick))]
    if "memory" in chosen.only:
        parts += ["Highest point of a step that trains the candidates:", aligned(memory(quick=chosen.quick))]
    method = f"one thread a process, CPU time, {rounds} rounds in turn. {chosen.note}".strip()
    write_page("target_sets", "Large sets of candidates", setting_of(__file__, method), parts, chosen.out)


if __name__ == "__main__":
    if "--rank" in sys.argv:
        measure_memory(Path(sys.argv[-1]), int(sys.argv[-2]))
    else:
        main()
