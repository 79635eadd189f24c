"""What does pre-training with M3I's targets leave in the features? Same network, views and steps throughout.

    python benchmarks/m3i_learning.py --quick              # 4 recipes, one seed: half an hour on 2 cores
    python benchmarks/m3i_learning.py                      # 8 recipes, 3 seeds, a transformer, CamVid: hours
    python benchmarks/m3i_learning.py --only intra full --seeds 0

The claim is the *linear probe* (logistic regression on the mean of the last cells; its decay is chosen on
every fifth training picture; 1,000 val pictures). Nearest neighbours and fine-tuning with a tenth of the
labels stand beside it, and so does the network as it starts (`random`), which is a strong baseline on small
pictures. Settings were chosen on training pictures that a probe holds out, never on val.

Needs `ALLSIGHT_DATA`. Each part is one command of `allsight`; what is there whole already is not made again,
and a run that was stopped goes on. Figures go to `benchmarks/results/DATE_m3i_learning_ISA.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _page import RESULTS, setting_of, write_page

RECIPES = Path(__file__).with_name("_m3i_recipes.py")
QUICK = ("supervised", "intra", "intra_inter", "full")
FULL = ("supervised", "intra", "inter", "intra_inter", "full", "full_10", "two_stage")
VIT = ("full_vit",)
PROBE_PICTURES = 1000
MONITORS = ("features/std", "features/rank", "features/place_share", "target_std", "target_rank", "top_share")
RATES = (5e-4, 1e-3, 2e-3)


@dataclass
class Settings:
    """What the user chose."""

    runs: Path
    steps: int
    finetune_steps: int
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Job -> CPU seconds, of those that ran now."""


@dataclass(frozen=True)
class Row:
    """What became of one recipe with one seed."""

    recipe: str
    linear: float
    neighbours: float
    finetuned: float
    held_out: float
    monitors: dict[str, tuple[float, float]]
    """Name -> value at the first and at the last watched step."""
    alarms: tuple[str, ...]
    cpu_s: float

    @property
    def collapsed(self) -> bool:
        return any("shrinks" in text or "collapses" in text for text in self.alarms)


def allsight(settings: Settings, name: str, words: Sequence[str]) -> str:
    """What a command of `allsight` printed; its CPU time is noted.

    Raises:
        RuntimeError: It failed.
    """
    log = settings.runs / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w+") as out:
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
        command = [sys.executable, "-m", "allsight.cli", *words]
        process = os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)],
        )
        _, status, used = os.wait4(process, 0)
        settings.seconds[name] = used.ru_utime + used.ru_stime
        out.seek(0)
        text = out.read()
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(words)}:\n{text}")
    return text


def train(settings: Settings, recipe: str, name: str, seed: int, *changes: str) -> Path:
    """Train a recipe of `_m3i_recipes.py`, or go on with it; its folder."""
    folder = settings.runs / name
    if _is_finished(folder):
        return folder
    if list(folder.glob("checkpoints/step-*")):
        words = ["train", str(folder), "--resume"]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        words = ["train", f"{RECIPES}:{recipe}", "--name", name, "--runs", str(settings.runs)]
        words += [f"seed={seed}", f"train.threads={settings.threads}", *changes]
    print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr)
    allsight(settings, name, [*words, "--quiet"])
    return folder


def probe(settings: Settings, folder: Path, kind: str) -> dict[str, float]:
    """`allsight eval --probe`, or what it found before."""
    file = folder / f"{kind}.json"
    if not file.is_file():
        name = f"{folder.name}-{kind}"
        text = allsight(settings, name, ["eval", str(folder), "--probe", kind, "--weights", "last", "--json"])
        file.write_text(text[text.index("{") :])
    (values,) = json.loads(file.read_text())["tasks"].values()
    return values


def pretrained(settings: Settings, recipe: str, seed: int) -> Path:
    """The run of a recipe; two stages are two runs of half the steps each."""
    steps = settings.steps
    name = f"{recipe}-{seed}"
    if recipe.startswith("random"):
        return train(settings, recipe, name, seed)
    if recipe != "two_stage":
        return train(settings, recipe, name, seed, f"schedule.steps={steps}")
    first = train(settings, "intra_inter", f"first_stage-{seed}", seed, f"schedule.steps={steps // 2}")
    changes = (f"schedule.steps={steps - steps // 2}", f"start.weights={first}")
    return train(settings, "second_stage", name, seed, *changes)


def finetuned(settings: Settings, folder: Path, seed: int) -> Path:
    """The run's encoder trained on with a tenth of the labels."""
    recipe = "finetune_vit" if folder.name.partition("-")[0].endswith("_vit") else "finetune"
    changes = (f"schedule.steps={settings.finetune_steps}", f"start.weights={folder}")
    return train(settings, recipe, f"{folder.name}-finetuned", seed, *changes)


def judge(settings: Settings, recipe: str, seed: int) -> Row:
    """Pre-train, probe and fine-tune."""
    folder = pretrained(settings, recipe, seed)
    linear, neighbours = (probe(settings, folder, kind) for kind in ("linear", "knn"))
    tuned = finetuned(settings, folder, seed)
    seen = [event["values"] for event in _events(folder) if event["kind"] == "monitor"]
    alarms = tuple(event["text"] for event in _events(folder) if event["kind"] == "alarm")
    monitors = {
        key: (float(seen[0][key]), float(seen[-1][key]))
        for key in (seen[0] if seen else {})
        if key.endswith(MONITORS)
    }
    names = [n for n in settings.seconds if n == folder.name or n.startswith(f"{folder.name}-")]
    cpu_s = sum(settings.seconds[name] for name in names)
    accuracy = _last(tuned, "tiny20")["top1"]
    return Row(
        recipe, linear["top1"], neighbours["top1"], accuracy, linear["held_out"], monitors, alarms, cpu_s
    )


def scratch(settings: Settings, seed: int) -> dict[float, float]:
    """A tenth of the labels from scratch, as many steps as pre-training and fine-tuning: rate -> top1."""
    steps = settings.steps + settings.finetune_steps
    found = {}
    for rate in RATES:
        changes = (f"schedule.steps={steps}", f"optim.lr={rate}", "optim.groups.layer_decay=1")
        folder = train(settings, "finetune", f"scratch_{rate:g}-{seed}", seed, *changes)
        found[rate] = _last(folder, "tiny20")["top1"]
    return found


def segmented(settings: Settings, seed: int) -> dict[str, float]:
    """CamVid from scratch and from what pictures without labels taught: mIoU."""
    street = train(settings, "street", f"street-{seed}", seed, f"schedule.steps={settings.steps}")
    own = train(settings, "segment", f"segment_street-{seed}", seed, f"start.weights={street}")
    plain = train(settings, "segment", f"segment_scratch-{seed}", seed)
    return {"scratch": _last(plain, "camvid")["miou"], "M3I without labels": _last(own, "camvid")["miou"]}


def table(rows: dict[str, list[Row]]) -> str:
    """Mean over seeds, and the standard error of val pictures and seeds together."""
    lines = [
        "| recipe | linear probe | k-NN | fine-tuned, 10 % labels | held-out training pictures | flagged |",
        "|---|---|---|---|---|---|",
    ]
    for recipe, found in rows.items():
        cells = [
            _with_error([getattr(row, name) for row in found])
            for name in ("linear", "neighbours", "finetuned")
        ]
        flagged = sum(row.collapsed for row in found)
        cells += [
            f"{mean(row.held_out for row in found):.3f}",
            f"{flagged} of {len(found)}" if flagged else "no",
        ]
        lines.append(f"| {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines)


def error_of(values: Sequence[float]) -> float:
    """Standard error of a mean accuracy: of 1,000 pictures, and of seeds where there are several."""
    centre = mean(values)
    pictures = centre * (1 - centre) / PROBE_PICTURES
    seeds = stdev(values) ** 2 / len(values) if len(values) > 1 else 0.0
    return sqrt(pictures + seeds)


def monitors_table(rows: dict[str, list[Row]]) -> str:
    """First and last value of the monitors, of the first seed."""
    lines = ["| recipe | monitor | first | last | alarms |", "|---|---|---|---|---|"]
    for recipe, found in rows.items():
        row = found[0]
        texts = "; ".join(row.alarms) or "none"
        for number, (key, (first, last)) in enumerate(row.monitors.items()):
            lines.append(f"| {recipe} | {key} | {first:.3g} | {last:.3g} | {'' if number else texts} |")
    return "\n".join(lines)


def bars(rows: dict[str, list[Row]], *, quick: bool) -> str:
    """What the issue of the benchmark is, judged on the linear probe."""
    means = {name: [row.linear for row in found] for name, found in rows.items()}
    random = means["random"]

    def against(name: str, margin: float, text: str) -> str:
        gain = mean(means[name]) - mean(random)
        return f"- {text}: {gain:+.3f} (needs {margin:+.3f}): {'yes' if gain >= margin else 'NO'}"

    found = []
    if "supervised" in means:
        found.append(against("supervised", 0.03, "supervised above random by 3 points"))
    if quick:
        return "\n".join([*found, "- no claim about self-supervision is made from one seed and these steps"])
    for name in ("supervised", "full", "intra", "intra_inter"):
        if name in means:
            margin = 2 * sqrt(error_of(means[name]) ** 2 + error_of(random) ** 2)
            must = name in ("supervised", "full")
            found.append(
                against(name, margin, f"{'must' if must else 'target'}: {name} above random by 2 SE")
            )
            if not must:
                found.append(against(name, -margin, f"must: {name} not below random by 2 SE"))
    return "\n".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=sorted({*FULL, *VIT}), help="recipes; random always is")
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--steps", type=int, help="of pre-training; default 1000 (quick) or 3000")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs/m3i_learning"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page goes")
    parser.add_argument("--note", default="", help="a line for the page, such as what else the machine did")
    chosen = parser.parse_args()
    seeds = chosen.seeds or ([0] if chosen.quick else [0, 1, 2])
    recipes = ["random", *(chosen.only or (QUICK if chosen.quick else FULL))]
    settings = Settings(
        chosen.runs.absolute(), chosen.steps or (1000 if chosen.quick else 3000), 300, chosen.threads
    )
    jobs: list[tuple[str, int]] = [(recipe, seed) for seed in seeds for recipe in recipes]
    if not chosen.quick and not chosen.only:
        jobs += [("random_vit", seeds[0]), ("full_vit", seeds[0])]
    begun = time.perf_counter()
    with ThreadPoolExecutor(chosen.parallel) as pool:
        found = list(pool.map(lambda job: judge(settings, *job), jobs))
        rows: dict[str, list[Row]] = {}
        for row in found:
            rows.setdefault(row.recipe, []).append(row)
        parts = ["## Features", table(rows), "## Bars", bars(rows, quick=chosen.quick)]
        if not chosen.quick and not chosen.only:
            parts += _rest(settings, rows, seeds, pool)
    parts += ["## Monitors of the first seed", monitors_table(rows), "## CPU seconds", _costs(rows)]
    method = (
        f"{settings.steps} steps of 32 pictures, {settings.finetune_steps} of fine-tuning; seeds "
        f"{', '.join(map(str, seeds))}; {chosen.parallel} runs of {chosen.threads} thread(s) at a time; "
        f"{(time.perf_counter() - begun) / 60:.0f} minutes. {chosen.note}"
    )
    setting = setting_of(__file__, method.strip())
    title = "What M3I's targets leave in the features"
    write_page(
        "m3i_learning_quick" if chosen.quick else "m3i_learning", title, setting, parts, chosen.results
    )


def _rest(
    settings: Settings, rows: dict[str, list[Row]], seeds: Sequence[int], pool: ThreadPoolExecutor
) -> list[str]:
    """Few labels against from scratch, and CamVid."""
    alone: Callable[[int], dict[float, float]] = lambda seed: scratch(settings, seed)  # noqa: E731
    dense: Callable[[int], dict[str, float]] = lambda seed: segmented(settings, seed)  # noqa: E731
    by_rate, by_start = list(pool.map(alone, seeds)), list(pool.map(dense, seeds))
    best = max(RATES, key=lambda rate: mean(each[rate] for each in by_rate))
    lines = [f"- M3I, fine-tuned: {_with_error([row.finetuned for row in rows.get('full_10', [])])}"]
    lines += [
        f"- from scratch, equal total steps, rate {rate:g}{' (best)' if rate == best else ''}: "
        f"{_with_error([each[rate] for each in by_rate])}"
        for rate in RATES
    ]
    camvid = [
        f"- {name}: {', '.join(f'{each[name]:.3f}' for each in by_start)}; mean "
        f"{mean(each[name] for each in by_start):.3f}"
        for name in by_start[0]
    ]
    return ["## A tenth of the labels and no others", "\n".join(lines), "## CamVid, mIoU", "\n".join(camvid)]


def _costs(rows: dict[str, list[Row]]) -> str:
    return "\n".join(
        f"- {name}: {mean(row.cpu_s for row in found):.0f} (0: it was there already)"
        for name, found in rows.items()
    )


def _with_error(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {error_of(values):.3f}" if values else "-"


def _events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _is_finished(folder: Path) -> bool:
    return any(event["kind"] == "system" and event["text"] == "finished" for event in _events(folder))


def _last(folder: Path, task: str) -> dict[str, float]:
    """Metrics of the last evaluation."""
    every = [e["values"] for e in _events(folder) if e["kind"] == "eval" and e["task"] == task]
    return every[-1]


if __name__ == "__main__":
    main()
