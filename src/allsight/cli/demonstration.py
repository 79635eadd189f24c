"""`allsight demo`: from nothing to a trained generalist and its report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from allsight.cli.words import command

_RECIPE = "joint_world"
_WORLD = {"seed": 0, "size_px": 96, "train": 1500, "val": 240}
_PRETRAINING_RECIPE = "m3i_world"
_LANGUAGE_RECIPE = "uni_perceiver_world"
_LANGUAGE = {"seed": 0, "train": 3000, "val": 300, "pairs": 32}
_ASKED = 3
"""Pictures that the generalist of the language stage is asked about."""
_DRIVING_RECIPE = "bevformer_micro_demo"
_DRIVES = {"seed": 0, "train": 12, "val": 2}


def demo(
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where data and run folder go.")] = Path(
        "runs"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
) -> None:
    """Generate a small world, train tasks jointly on it, and write reports. Takes minutes on a CPU.

    \b
    allsight demo

    The world lies in RUNS/demo-data, drives in RUNS/demo-drives; the next demo uses them again. Each demo has
    run folders of its own: RUNS/demo, RUNS/demo-pretraining, RUNS/demo-language and RUNS/demo-driving,
    RUNS/demo-2 ...
    """
    from allsight.view import write_report

    begun = time.perf_counter()
    data = runs / "demo-data"
    _provide_world(data, quiet=quiet)
    folder = _free_folder(runs / "demo")
    _train(_RECIPE, folder, data, "training {tasks} jointly for {steps} steps in {folder}", quiet=quiet)
    reports = [
        write_report(folder),
        _pretrain(runs, folder.name, data, quiet=quiet),
        _describe(runs, folder.name, data, quiet=quiet),
        _drive(runs, folder.name, quiet=quiet),
    ]
    minutes = (time.perf_counter() - begun) / 60
    print(f"the demo took {minutes:.1f} minutes; look at its reports: {', '.join(map(str, reports))}")
    print("\n".join(["five commands to try next:", *(f"  {line}" for line in _to_try(folder, data))]))


def _train(
    recipe: str,
    folder: Path,
    root: Path,
    say: str,
    *,
    quiet: bool,
    data: Mapping[str, str] | None = None,
) -> None:
    """Train a recipe into a folder and print what it reached.

    Args:
        root: Where the data are.
        say: What is printed before, with {tasks}, {steps} and {folder}.
        data: Task -> its data, where the recipe names others.
    """
    from allsight.cli.running import print_results, train_with_progress
    from allsight.config import replace
    from allsight.recipes import find_config

    places = {f"tasks.{task}.data": place for task, place in (data or {}).items()}
    settings = {"name": folder.name, "data.root": str(root.resolve()), **places}
    config = replace(find_config(recipe)[0], settings)
    print(say.format(tasks=", ".join(config.tasks), steps=config.schedule.steps, folder=folder))
    words = ["demo", "--runs", str(folder.parent)]
    print_results(train_with_progress(config, folder, words=words, quiet=quiet), folder)


def _pretrain(runs: Path, name: str, data: Path, *, quiet: bool) -> Path:
    """The pre-training stage: views predict each other and a few labels; its report."""
    from allsight.engine.predictor import load
    from allsight.view import write_report
    from allsight.view.pretraining import FILE, draw_pretraining
    from allsight.view.record import read_run

    folder = _free_folder(runs / f"{name}-pretraining")
    say = "pre-training: two pictures in one input, {steps} steps in {folder}"
    _train(_PRETRAINING_RECIPE, folder, data, say, quiet=quiet)
    first, *_, last = (event["values"]["top1"] for event in read_run(folder).probes)
    print(f"neighbours by its features find {last:.0%} of the toys, {first:.0%} before the first step")
    drawn = draw_pretraining(load(folder), folder / FILE)
    print(f"inputs, targets and predictions: {drawn}")
    return write_report(folder)


def _describe(runs: Path, name: str, data: Path, *, quiet: bool) -> Path:
    """The language stage: one encoder names and describes toys, and is asked about new ones; its report."""
    from allsight.data.world.language import caption_of, read_pictures
    from allsight.engine.predictor import load
    from allsight.types.answers import TextAnswer
    from allsight.view import write_report

    _provide_language(data / "language", quiet=quiet)
    folder = _free_folder(runs / f"{name}-language")
    say = "language: one encoder names and describes toys, {steps} steps in {folder}"
    _train(_LANGUAGE_RECIPE, folder, data, say, quiet=quiet)
    generalist = load(folder)
    pictures = sorted((data / "language" / "images" / "val").iterdir())
    told = read_pictures(data / "language", "val")
    for picture, (things, _) in islice(zip(pictures, told, strict=True), _ASKED):
        answer = generalist.ask(picture, task="caption")
        assert isinstance(answer, TextAnswer)
        print(f"asked to describe {picture}: {answer.text}\n  there is: {caption_of(things)}")
    return write_report(folder)


def _drive(runs: Path, name: str, *, quiet: bool) -> Path:
    """The driving stage: cameras around a car to boxes and a map; its report."""
    from allsight.cli.driving import predict_drives
    from allsight.engine.predictor import load
    from allsight.recipes import find_config
    from allsight.view import write_report

    data = runs / "demo-drives"
    _provide_drives(data, quiet=quiet)
    folder = _free_folder(runs / f"{name}-driving")
    say = "driving: boxes and a map from six cameras, {steps} steps in {folder}"
    places = {task: f"nuscenes:{data.name}" for task in find_config(_DRIVING_RECIPE)[0].tasks}
    _train(_DRIVING_RECIPE, folder, runs, say, quiet=quiet, data=places)
    predict_drives(
        load(folder),
        f"nuscenes:{data}",
        split=None,
        names=None,
        scenes=1,
        out=folder,
        gif=True,
        as_json=True,
    )
    print(f"a drive as the model sees it: {folder / 'scene-0000.gif'}")
    return write_report(folder)


def _to_try(folder: Path, data: Path) -> list[str]:
    picture = min((data / "label_maps" / "val").glob("*.jpg"))
    bigger = _free_folder(folder.parent / "bigger")
    place = [] if folder.parent == Path("runs") else ["--runs", folder.parent]
    return [
        command("predict", folder, picture, "--out", folder / "drawn"),
        command("eval", folder, "--weights", "last"),
        command("config", _RECIPE, "optim.lr=1e-3"),
        command(
            *(
                "train",
                _RECIPE,
                f"data.root={data}",
                "model.backbone.variant=micro",
                "--name",
                bigger.name,
            ),
            *place,
        ),
        command("doctor"),
    ]


def _provide_world(folder: Path, *, quiet: bool) -> None:
    from allsight.config import build
    from allsight.data.world import World, generate_world

    config = build(World.Config, _WORLD)
    count = 2 * (config.train + config.val)
    _provide(
        folder, "world", generate_world, config, "world.json", f"{count} pictures", "pictures", quiet=quiet
    )


def _provide_language(folder: Path, *, quiet: bool) -> None:
    from allsight.config import build
    from allsight.data.world.language import Language, generate_language

    config = build(Language.Config, _LANGUAGE)
    count = f"{config.train + config.val + config.pairs} pictures with texts"
    what, mark = "language world", "language.json"
    _provide(folder, what, generate_language, config, mark, count, "pictures", quiet=quiet)


def _provide_drives(folder: Path, *, quiet: bool) -> None:
    from allsight.data.world.drives import Drives, generate_drives

    config = Drives.Config.variant("easy", **_DRIVES)
    count = f"{(config.train + config.val) * config.frames} frames of six cameras"
    what, mark = "set of drives", "drives.json"
    _provide(folder, what, generate_drives, config, mark, count, "scenes", quiet=quiet)


def _provide(
    folder: Path,
    what: str,
    generate: Callable[..., Path],
    config: Any,
    mark: str,
    count: str,
    unit: str,
    *,
    quiet: bool,
) -> None:
    """Data of the demo in a folder, generated unless they are there already.

    Args:
        what: Their name, for messages.
        mark: The file that tells their settings.
        count: How much is generated, for messages.
        unit: What progress counts.
    """
    from allsight.cli.words import Counter
    from allsight.config import ConfigError
    from allsight.launch.run import usable_cores

    if _holds(folder / mark, config):
        print(f"using the {what} in {folder}")
        return
    if folder.exists() and any(folder.iterdir()):
        if not (folder / mark).is_file():
            raise ConfigError(f"{folder}: no {what} of this demo; move it away or choose another --runs")
        print(f"{folder} holds a {what} of other settings; replacing it")
        shutil.rmtree(folder)
    begun = time.perf_counter()
    generate(folder, config, workers=usable_cores(), on_progress=None if quiet else Counter(unit))
    print(f"generated {count} in {time.perf_counter() - begun:.1f} s in {folder}")


def _holds(file: Path, config: Any) -> bool:
    """Whether there are finished data whose settings, told by `file`, are these."""
    try:
        written: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and written.get("options") == config.model_dump(mode="json")


def _free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that is not there."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
