"""`allsight demo`: from nothing to a trained generalist and its report."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from allsight.cli.words import command

_RECIPE = "joint_world"
_WORLD = {"seed": 0, "size_px": 96, "train": 1500, "val": 240}
_PRETRAINING_RECIPE = "m3i_world"
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
    run folders of its own: RUNS/demo, RUNS/demo-pretraining and RUNS/demo-driving, RUNS/demo-2 ...
    """
    from allsight.cli.running import print_results, train_with_progress
    from allsight.config import replace
    from allsight.recipes import find_config
    from allsight.view import write_report

    begun = time.perf_counter()
    data = runs / "demo-data"
    _provide_world(data, quiet=quiet)
    folder = _free_folder(runs / "demo")
    recipe, _ = find_config(_RECIPE)
    config = replace(recipe, {"name": folder.name, "data.root": str(data.resolve())})
    print(f"training {', '.join(config.tasks)} jointly for {config.schedule.steps} steps in {folder}")
    metrics = train_with_progress(config, folder, words=["demo", "--runs", str(runs)], quiet=quiet)
    print_results(metrics, folder)
    report = write_report(folder)
    pretrained = _pretrain(runs, folder.name, data, quiet=quiet)
    driving = _drive(runs, folder.name, quiet=quiet)
    minutes = (time.perf_counter() - begun) / 60
    print(f"the demo took {minutes:.1f} minutes; look at its reports: {report}, {pretrained}, {driving}")
    print("\n".join(["five commands to try next:", *(f"  {line}" for line in _to_try(folder, data))]))


def _pretrain(runs: Path, name: str, data: Path, *, quiet: bool) -> Path:
    """The pre-training stage: views predict each other and a few labels; its report."""
    from allsight.cli.running import print_results, train_with_progress
    from allsight.config import replace
    from allsight.engine.predictor import load
    from allsight.recipes import find_config
    from allsight.view import write_report
    from allsight.view.pretraining import FILE, draw_pretraining
    from allsight.view.record import read_run

    folder = _free_folder(runs / f"{name}-pretraining")
    recipe, _ = find_config(_PRETRAINING_RECIPE)
    config = replace(recipe, {"name": folder.name, "data.root": str(data.resolve())})
    print(f"pre-training: two pictures in one input, {config.schedule.steps} steps in {folder}")
    metrics = train_with_progress(config, folder, words=["demo", "--runs", str(runs)], quiet=quiet)
    print_results(metrics, folder)
    first, *_, last = (event["values"]["top1"] for event in read_run(folder).probes)
    print(f"neighbours by its features find {last:.0%} of the toys, {first:.0%} before the first step")
    drawn = draw_pretraining(load(folder), folder / FILE)
    print(f"inputs, targets and predictions: {drawn}")
    return write_report(folder)


def _drive(runs: Path, name: str, *, quiet: bool) -> Path:
    """The driving stage: cameras around a car to boxes and a map; its report."""
    from allsight.cli.driving import predict_drives
    from allsight.cli.running import print_results, train_with_progress
    from allsight.config import replace
    from allsight.engine.predictor import load
    from allsight.recipes import find_config
    from allsight.view import write_report

    data = runs / "demo-drives"
    _provide_drives(data, quiet=quiet)
    folder = _free_folder(runs / f"{name}-driving")
    recipe, _ = find_config(_DRIVING_RECIPE)
    places = {f"tasks.{task}.data": f"nuscenes:{data.name}" for task in recipe.tasks}
    config = replace(recipe, {"name": folder.name, "data.root": str(runs.resolve()), **places})
    print(f"driving: boxes and a map from six cameras, {config.schedule.steps} steps in {folder}")
    metrics = train_with_progress(config, folder, words=["demo", "--runs", str(runs)], quiet=quiet)
    print_results(metrics, folder)
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


def _provide_drives(folder: Path, *, quiet: bool) -> None:
    """The demo's drives in `folder`, generated unless they are there already."""
    from allsight.cli.words import Counter
    from allsight.config import ConfigError
    from allsight.data.world.drives import Drives, generate_drives
    from allsight.launch.run import usable_cores

    config = Drives.Config.variant("easy", **_DRIVES)
    if _holds(folder, config, "drives.json"):
        print(f"using the drives in {folder}")
        return
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "drives.json").is_file():
            raise ConfigError(f"{folder}: no drives of this demo; move it away or choose another --runs")
        print(f"{folder} holds drives of other settings; replacing them")
        shutil.rmtree(folder)
    begun = time.perf_counter()
    generate_drives(folder, config, workers=usable_cores(), on_progress=None if quiet else Counter("scenes"))
    count = (config.train + config.val) * config.frames
    print(f"generated {count} frames of six cameras in {time.perf_counter() - begun:.1f} s in {folder}")


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
    """The demo's world in `folder`, generated unless it is there already."""
    from allsight.cli.words import Counter
    from allsight.config import build
    from allsight.data.world import World, generate_world
    from allsight.launch.run import usable_cores

    config = build(World.Config, _WORLD)
    if _holds(folder, config):
        print(f"using the world in {folder}")
        return
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "world.json").is_file():
            from allsight.config import ConfigError

            raise ConfigError(f"{folder}: not a world of this demo; move it away or choose another --runs")
        print(f"{folder} holds a world of other settings; replacing it")
        shutil.rmtree(folder)
    begun = time.perf_counter()
    generate_world(folder, config, workers=usable_cores(), on_progress=None if quiet else Counter("pictures"))
    count = 2 * (config.train + config.val)
    print(f"generated {count} pictures in {time.perf_counter() - begun:.1f} s in {folder}")


def _holds(folder: Path, config: Any, file: str = "world.json") -> bool:
    """Whether the finished data in `folder` is that of `config`."""
    try:
        written: Any = json.loads((folder / file).read_text(encoding="utf-8"))
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
