"""What does each part of InternImage's operator bring? Six networks of equal size, trained with three seeds.

    python benchmarks/ablation.py                           # 18 runs of 12 to 25 minutes, one on each core
    python benchmarks/ablation.py --epochs 0.05 --seeds 0   # does all of it work? two minutes

Needs `ALLSIGHT_DATA`. All networks are trained with one seed before any gets a second one, and the page is
written anew after every run, so that it can be stopped at any time; started again, it goes on where it was.
Run folders stay in `--runs`. The page goes to `benchmarks/results/DATE_ablation_ISA.md`, or beside the runs
where `--epochs` makes them shorter than the recipes say.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev

from _page import RESULTS, write_page
from learning import events_of, figures, train

from allsight import recipes
from allsight.backbones.internimage_scaling import costs
from allsight.launch.bench.report import Setting

ORIGIN = "internimage_micro_tiny20"
ROWS = {
    "DCNv3": ORIGIN,
    "plain 3x3 convolution": f"{ORIGIN}_conv",
    "DCNv4": f"{ORIGIN}_dcnv4",
    "DCNv3, one group": f"{ORIGIN}_one_group",
    "DCNv3, no softmax": f"{ORIGIN}_no_softmax",
    "DCNv3, a projection for each point": f"{ORIGIN}_unshared",
}
HEAD = ("operator", "parameters", "work", "top-1, %", "spread", "by seed", "minus DCNv3", "minutes")

Results = Mapping[str, Mapping[int, Mapping[str, float]]]


def table(results: Results) -> str:
    """The figures so far as markdown: recipe -> seed -> what `learning.figures` found."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    own = {seed: found["tiny20/top1"] for seed, found in results.get(ORIGIN, {}).items()}
    for name, recipe in ROWS.items():
        by_seed = dict(sorted(results.get(recipe, {}).items()))
        if not by_seed:
            lines.append(f"| {name} " + "| – " * (len(HEAD) - 1) + "|")
            continue
        top1 = {seed: found["tiny20/top1"] for seed, found in by_seed.items()}
        pairs = [value - own[seed] for seed, value in top1.items() if seed in own]
        cells = [
            name,
            f"{next(iter(by_seed.values()))['parameters']:,.0f}",
            f"{macs(recipe) / macs(ORIGIN):.2f}",
            f"{100 * mean(top1.values()):.1f}",
            f"{100 * stdev(top1.values()):.1f}" if len(top1) > 1 else "–",
            " ".join(f"{100 * value:.1f}" for value in top1.values()),
            _difference(pairs) if recipe != ORIGIN else "",
            f"{mean(found['minutes'] for found in by_seed.values()):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def macs(recipe: str) -> int:
    """Multiplications with an addition of the backbone for one picture of the recipe."""
    config = getattr(recipes, recipe)()
    side = config.tasks.tiny20.size_px
    return sum(part.macs for part in costs(config.model.backbone, (side, side)))


def _difference(pairs: list[float]) -> str:
    if len(pairs) < 2:
        return f"{100 * pairs[0]:+.1f}" if pairs else "–"
    return f"{100 * mean(pairs):+.1f} ± {100 * stdev(pairs) / len(pairs) ** 0.5:.1f}"


def one_run(recipe: str, seed: int, runs: Path, overrides: list[str]) -> dict[str, float]:
    """Train, or find trained, one recipe with one seed."""
    folder = train(recipe, seed, runs, 1, overrides)
    start = next(event for event in events_of(folder) if event["kind"] == "system")
    return figures(folder) | {"parameters": start["values"]["parameters"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, help="shorten all runs to so many epochs")
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    chosen = parser.parse_args()
    runs, out, overrides = chosen.runs, RESULTS, []
    if chosen.epochs is not None:
        runs = out = chosen.runs / f"epochs-{chosen.epochs:g}"
        shorter = {"schedule.epochs": chosen.epochs, "schedule.warmup_epochs": chosen.epochs / 8}
        overrides = [*(f"{key}={value:g}" for key, value in shorter.items()), "eval.every_steps=null"]
    # Folders of this machine stay out of the page.
    words = ["--seeds", *map(str, chosen.seeds)]
    words += [] if chosen.epochs is None else ["--epochs", f"{chosen.epochs:g}"]
    method = f"one thread a run, {chosen.parallel} runs at a time; top-1 of 1,000 val pictures"
    setting = Setting.of_this_process(["python", "benchmarks/ablation.py", *words], method=method)
    jobs = [(recipe, seed) for seed in chosen.seeds for recipe in ROWS.values()]
    results: dict[str, dict[int, dict[str, float]]] = {}
    faults: list[str] = []
    with ThreadPoolExecutor(chosen.parallel) as pool:
        waiting = {pool.submit(one_run, *job, runs, overrides): job for job in jobs}
        for future in as_completed(waiting):
            recipe, seed = waiting[future]
            if (error := future.exception()) is not None:
                print(f"{recipe}, seed {seed}: {error}", file=sys.stderr)
                faults.append(f"{recipe}, seed {seed}: failed; start the command again to go on with it.")
            else:
                results.setdefault(recipe, {})[seed] = future.result()
            done = sum(map(len, results.values()))
            parts = [f"{done} of {len(jobs)} runs.", table(results), NOTE, *faults]
            write_page("ablation", "Ablation of InternImage's operator", setting, parts, out)


NOTE = """All networks are InternImage-micro on 20 classes of Tiny ImageNet at 64 px, from scratch, with the
settings of `internimage_micro_tiny20`; width or MLP make up for parameters (see the recipes' docstrings).
Work is that of the backbone in units of DCNv3's. Spread: standard deviation over seeds. Differences are means
over equal seeds with their standard error. The choice of val pictures adds 1.5 points to the error of a
top-1, but all runs see the same ones."""


if __name__ == "__main__":
    main()
