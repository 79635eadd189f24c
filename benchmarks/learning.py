"""What do the recipes learn, and in how long? Trains each recipe with several seeds and writes the figures.

    python benchmarks/learning.py internimage_micro_tiny20 --seeds 0 1 2 --parallel 2
    python benchmarks/learning.py joint_tiny20_camvid tiny20_alone camvid_alone --parallel 2

Needs `ALLSIGHT_DATA`. Run folders stay in `--runs`, and a run that is there whole already is not made again.
Figures go to `benchmarks/results/DATE_learning_NAME.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

HERE = Path(__file__).parent


def train(recipe: str, seed: int, runs: Path, threads: int, overrides: Sequence[str]) -> Path:
    """Run one recipe with one seed through the command line; its folder."""
    folder = runs / f"{recipe}_seed{seed}"
    if not is_finished(folder):
        resume = ["--resume"] if list(folder.glob("checkpoints/step-*")) else []
        if folder.exists() and not resume:
            print(f"{folder}: was stopped before it saved anything; begun anew", file=sys.stderr)
            shutil.rmtree(folder)
        source = [str(folder)] if resume else [recipe, "--name", folder.name, "--runs", str(runs)]
        settings = [] if resume else [f"seed={seed}", f"train.threads={threads}", *overrides]
        command = [sys.executable, "-m", "allsight.cli", "train", *source, *settings, *resume, "--quiet"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return folder


def events_of(folder: Path) -> list[dict]:
    """The events of a run; none if it has not started."""
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def is_finished(folder: Path) -> bool:
    """Whether the run went to its end."""
    return any(event["kind"] == "system" and event["text"] == "finished" for event in events_of(folder))


def figures(folder: Path) -> dict[str, float]:
    """Metrics of the last evaluation, and minutes from the first to the last event."""
    events = events_of(folder)
    found = {}
    for event in events:
        if event["kind"] == "eval" and event["task"] is not None:
            for name, value in event["values"].items():
                if name not in ("seconds", "samples", "corrupt"):
                    found[f"{event['task']}/{name}"] = float(value)
    found["minutes"] = (events[-1]["time"] - events[0]["time"]) / 60
    return found


def report(results: dict[str, dict[int, dict[str, float]]], command: str, threads: int, parallel: int) -> str:
    """The figures as markdown."""
    import torch

    lines = [
        f"# What recipes learn, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"Command: `{command}`",
        "",
        f"{_cpu()}, {os.cpu_count()} cores; {threads} thread(s) a run, {parallel} run(s) at a time; "
        f"Python {platform.python_version()}, torch {torch.__version__}.",
        "",
    ]
    for recipe, by_seed in results.items():
        names = list(next(iter(by_seed.values())))
        lines += [f"## {recipe}", "", f"| seed | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
        for seed, values in by_seed.items():
            lines.append(f"| {seed} | {' | '.join(f'{values[name]:.4g}' for name in names)} |")
        if len(by_seed) > 1:
            means = [mean(values[name] for values in by_seed.values()) for name in names]
            lines.append(f"| mean | {' | '.join(f'{value:.4g}' for value in means)} |")
        lines.append("")
    return "\n".join(lines)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=["internimage_micro_tiny20"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for all runs")
    chosen = parser.parse_args()
    jobs = [(recipe, seed) for recipe in chosen.recipes for seed in chosen.seeds]
    with ThreadPoolExecutor(chosen.parallel) as pool:
        folders = pool.map(lambda job: train(*job, chosen.runs, chosen.threads, chosen.set), jobs)
    results: dict[str, dict[int, dict[str, float]]] = {}
    for (recipe, seed), folder in zip(jobs, folders, strict=True):
        results.setdefault(recipe, {})[seed] = figures(folder)
    command = " ".join(["python", "benchmarks/learning.py", *sys.argv[1:]])
    text = report(results, command, chosen.threads, chosen.parallel)
    out = HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}_learning_{chosen.recipes[0]}.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text(text)
    print(text, f"\nwritten to {out}")


if __name__ == "__main__":
    main()
