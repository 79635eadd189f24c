"""What does `uni_perceiver_micro_world` learn of the language world? Trains it with some seeds, asks, prints.

    python benchmarks/uniperceiver_world.py --seeds 0 1 2
    python benchmarks/uniperceiver_world.py --quick

Each figure stands beside what knowing nothing gives and beside what the same model answers when it is shown
another picture. Stopped and started again it goes on: the world, whole runs and their figures are kept in
`--runs`. `--quick` trains a few steps on a small world: nothing is learned, and no bar is judged. The table
goes to `benchmarks/results/DATE_uniperceiver_world_ISA.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from _language_scores import Figure, Scores
from _page import RESULTS, setting_of, write_page
from learning import is_finished, train

from allsight.data.world import Language, World, generate_world
from allsight.recipes import find_config

RECIPE = "uni_perceiver_micro_world"


def world(folder: Path, *, quick: bool) -> Path:
    """The world, made once."""
    if not (folder / "world.json").is_file():
        print(f"generating {folder}")
        language = Language.Config(train=224, val=100, pairs=32) if quick else Language.Config()
        generate_world(folder, World.Config(train=12, val=12), language=language, workers=2)
    return folder


def changes(steps: int, threads: int, data: Path) -> list[str]:
    """The recipe for so many steps: what is bound to steps goes along."""
    recipe, _ = find_config(RECIPE)
    whole = recipe.schedule.steps
    assert whole is not None
    found = [
        f"data.root={data.resolve()}",
        f"train.threads={threads}",
        f"schedule.steps={steps}",
        f"schedule.warmup_steps={min(recipe.schedule.warmup_steps or 0, steps // 4)}",
        f"eval.every_steps={max(1, steps // 4)}",
        f"checkpoint.every_steps={max(1, min(250, steps // 4))}",
    ]
    for name, task in recipe.tasks.items():
        if isinstance(task.share, tuple):
            knots = [[round(step * steps / whole), share] for step, share in task.share]
            found.append(f"tasks.{name}.share={json.dumps(knots)}")
    return found


def scored(run: Path, data: Path, pictures: int) -> list[Figure]:
    """The figures of a run, computed once."""
    file = run / f"language_scores_{pictures}.json"
    if not file.is_file():
        print(f"asking {run}")
        figures = Scores(run, data / "language", pictures).all()
        file.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    return [Figure(**row) for row in json.loads(file.read_text())]


def table(seeds: Sequence[int], results: Sequence[Sequence[Figure]], *, judged: bool) -> str:
    """A row a figure: each seed, standard error of one seed, and what to compare it with."""
    heads = [
        "what",
        *(f"seed {seed}" for seed in seeds),
        "s.e.",
        "trivial",
        "blind",
        "bar",
        "holds",
        "answers",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in zip(*results, strict=True):
        first = row[0]
        found, trivial = mean(f.found for f in row), mean(f.trivial for f in row)
        verdict = ""
        if first.bar is not None:
            holds = found >= first.bar and found >= trivial + 3 * first.error
            verdict = ("yes" if holds else "NO") if judged else "not judged"
        cells = [
            first.what,
            *(f"{f.found:.3f}" for f in row),
            f"{first.error:.3f}",
            f"{trivial:.3f}",
            f"{mean(f.blind for f in row):.3f}",
            "" if first.bar is None else f">= {first.bar:.2f}",
            verdict,
            str(first.count),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="in place of the recipe's own number")
    parser.add_argument("--pictures", type=int, default=1000, help="most pictures of a split that are judged")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps; no bar is judged")
    parser.add_argument("--runs", type=Path, default=Path("runs/uniperceiver_world"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    runs = given.runs / "quick" if given.quick else given.runs
    recipe, _ = find_config(RECIPE)
    assert recipe.schedule.steps is not None
    steps = given.steps or (8 if given.quick else recipe.schedule.steps)
    data = world(runs / "world", quick=given.quick)
    results = []
    for seed in given.seeds:
        run = train(RECIPE, seed, runs, given.threads, changes(steps, given.threads, data))
        assert is_finished(run), f"{run} did not finish"
        results.append(scored(run, data, given.pictures))
    setting = setting_of(__file__, f"{steps} steps of {recipe.schedule.steps}; one run a seed")
    parts = [
        "Generated pictures, which say nothing about real ones. Trivial: chance, or the most frequent word "
        "or answer of training (of questions: to the same words). Blind: the same model, another picture. A "
        "bar is also to be 3 standard errors above trivial.",
        table(given.seeds, results, judged=not given.quick),
    ]
    write_page("uniperceiver_world", "Uni-Perceiver on the language world", setting, parts, given.out)


if __name__ == "__main__":
    main()
