"""What does `uni_perceiver_micro_real` learn of real pictures: tasks together, each alone, with experts?

    python benchmarks/uniperceiver_real.py               # an hour and a half of one thread
    python benchmarks/uniperceiver_real.py --quick       # a few steps: does it run?

Each task alone is trained for as many steps as it has among the others, so that it sees as many samples of
its own. Experts are chosen by attributes, so that two of eight merge into one layer of the size of a dense
one. Each figure stands beside what knowing nothing gives and beside what the same model answers when it is
shown another picture. Needs `ALLSIGHT_DATA`. Stopped and started again it goes on: data, whole runs and their
figures are kept in `--runs`. The table goes to `benchmarks/results/DATE_uniperceiver_real_ISA.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from _language_scores import Figure
from _page import RESULTS, setting_of, write_page
from _real_scores import RealScores
from _uniperceiver_real_recipes import joint, own_steps
from learning import is_finished

RECIPES = Path(__file__).with_name("_uniperceiver_real_recipes.py")
SETS = ("tiny_imagenet20", "cifar10", "coco_small", "cutouts")


def allsight(*words: str, folder: Path, threads: int = 1) -> None:
    """Run a command of `allsight` in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ALLSIGHT_DATA": str(folder)}
    subprocess.run([sys.executable, "-m", "allsight.cli", *words], check=True, env=environment, cwd=folder)


def data(folder: Path, given: Path, *, quick: bool) -> Path:
    """The sets, composed pictures, all captions as texts, and a tokenizer of those of training; made once."""
    if (folder / "tokenizer.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        if not (folder / name).exists():
            (folder / name).symlink_to(given / name)
    if not (folder / "composed").exists():
        size = ["--pictures", "200", "--val", "100", "--unseen", "20"] if quick else []
        sources = ["--cutouts", "cutouts", "--backgrounds", "imagefolder:tiny_imagenet20"]
        allsight("data", "compose", "composed", *sources, *size, "--quiet", folder=folder)
    (folder / "texts").mkdir(exist_ok=True)
    for split in ("train", "val"):
        coco = json.loads((folder / "coco_small" / "annotations" / f"captions_{split}.json").read_text())
        lines = [" ".join(entry["caption"].split()) for entry in coco["annotations"]]
        composed = (folder / "composed" / "texts" / f"{split}.txt").read_text()
        (folder / "texts" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines) + composed)
    allsight("data", "tokenizer", "texts/train.txt", "--vocab", "1000", folder=folder)
    return folder


def trained(name: str, steps: int, threads: int, seed: int, root: Path, runs: Path) -> Path:
    """The run of one recipe, or what is there of it taken to its end."""
    run = runs / f"{name}-{seed}"
    if not is_finished(run):
        if list(run.glob("checkpoints/step-*")):
            words = [str(run), "--resume"]
        else:
            shutil.rmtree(run, ignore_errors=True)
            warmup = min(150, steps // 4)
            words = [f"{RECIPES}:{name}", "--name", run.name, "--runs", str(runs), f"seed={seed}"]
            words += [f"data.root={root}", f"train.threads={threads}", f"schedule.steps={steps}"]
            words += [f"schedule.warmup_steps={warmup}", f"checkpoint.every_steps={max(1, min(250, steps))}"]
        print(f"{name}: {steps} steps", file=sys.stderr)
        allsight("train", *words, "--quiet", folder=root, threads=threads)
    return run


def scored(run: Path, root: Path, most: int) -> list[Figure]:
    """The figures of a run, computed once."""
    file = run / f"real_scores_{most}.json"
    if not file.is_file():
        figures = RealScores(run, root, most).all()
        file.write_text(json.dumps([asdict(figure) for figure in figures], indent=1))
    return [Figure(**row) for row in json.loads(file.read_text())]


def table(found: dict[str, list[Figure]], kinds: Sequence[str]) -> str:
    """A row a figure: each kind of training, and what to compare it with."""
    rows: dict[str, dict[str, Figure]] = {}
    for kind in kinds:
        for figure in found.get(kind, []):
            rows.setdefault(figure.what, {})[kind] = figure
    lines = [
        f"| what | {' | '.join(kinds)} | s.e. | trivial | blind | 3 s.e. above trivial | answers |",
        "|" + "---|" * (len(kinds) + 6),
    ]
    for what, row in rows.items():
        first = next(iter(row.values()))
        holds = {kind: f.found >= f.trivial + 3 * f.error for kind, f in row.items()}
        verdict = (
            "yes" if all(holds.values()) else f"NO: {', '.join(k for k, good in holds.items() if not good)}"
        )
        cells = [f"{row[kind].found:.3f}" if kind in row else "-" for kind in kinds]
        cells += [
            f"{first.error:.3f}",
            f"{first.trivial:.3f}",
            f"{first.blind:.3f}",
            verdict,
            str(first.count),
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, help="of all tasks together; default the recipe's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=1000, help="most samples of a split that are judged")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--without-experts", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--runs", type=Path, default=Path("runs/uniperceiver_real"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if "ALLSIGHT_DATA" not in os.environ:
        parser.error("set ALLSIGHT_DATA to the folder of the real sets")
    config = joint()
    assert config.schedule.steps is not None
    steps = given.steps or (16 if given.quick else config.schedule.steps)
    runs = (given.runs / "quick" if given.quick else given.runs).absolute()
    root = data(runs / "data", Path(os.environ["ALLSIGHT_DATA"]).resolve(), quick=given.quick)
    together = ("joint",) if given.without_experts else ("joint", "experts")
    work = {name: steps for name in together}
    work |= {f"alone_{task}": max(1, own_steps(task, steps)) for task in config.tasks}

    def figures_of(name: str) -> list[Figure]:
        run = trained(name, work[name], given.threads, given.seed, root, runs)
        return scored(run, root, 100 if given.quick else given.pictures)

    with ThreadPoolExecutor(given.parallel) as pool:
        results = dict(zip(work, pool.map(figures_of, work), strict=True))
    found = {name: results[name] for name in together}
    found["alone"] = [figure for name in work if name.startswith("alone_") for figure in results[name]]
    alone = ", ".join(f"{task} {own_steps(task, steps)}" for task in config.tasks)
    method = f"{steps} steps of all tasks together; alone: {alone}; seed {given.seed}"
    parts = [
        "Trivial: chance, or the most frequent class, word or answer (of questions: to the same words). "
        "Blind: the same model, another picture (of `joint`). Composed pictures are cut-outs on pictures of "
        "Tiny ImageNet; those of validation are new compositions of the cut-outs of training on other "
        "pictures. COCO's few pictures are asked about in training: whether they can be learnt by heart.",
        table(found, (*together, "alone")),
    ]
    setting = setting_of(__file__, method)
    write_page(
        "uniperceiver_real_quick" if given.quick else "uniperceiver_real",
        "Uni-Perceiver on real pictures",
        setting,
        parts,
        given.out,
    )


if __name__ == "__main__":
    main()
