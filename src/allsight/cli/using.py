"""`allsight eval` and `allsight predict`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allsight.cli.words import Classes, Json, Recipe, Trust, Weights, check_backend, metric_lines, print_json

if TYPE_CHECKING:
    from allsight.engine.predictor import Predictor
    from allsight.types import Answer


class Probe(StrEnum):
    """The probes there are."""

    knn = "knn"
    linear = "linear"
    zero_shot = "zero_shot"


Task = Annotated[
    list[str] | None,
    typer.Option("--task", help="Only this task (may be repeated); default all.", show_default=False),
]


def evaluate(
    run: Recipe,
    weights: Weights = None,
    task: Task = None,
    classes: Classes = None,
    drop_cameras: Annotated[
        bool, typer.Option("--drop-cameras", help="Camera rigs: also score without each camera in turn.")
    ] = False,
    probe: Annotated[
        Probe | None,
        typer.Option(
            "--probe",
            help="Judge the features instead: by nearest neighbours, by a linear layer, or, where captions "
            "were learnt, by the names of the classes.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FORMAT:PATH", help="With --probe: a set of classes other than the run's own."
        ),
    ] = None,
    interference: Annotated[
        bool,
        typer.Option("--interference", help="Measure instead how the tasks help or hurt each other."),
    ] = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Score weights on the validation samples.

    \b
    allsight eval runs/joint_world
    allsight eval runs/joint_world --weights last --task shapes --json
    allsight eval internimage_t_in1k --weights internimage_t_1k_224.pth
    allsight eval runs/bevformer_micro_drives --drop-cameras
    allsight eval runs/joint_world --probe knn
    allsight eval internimage_t_in1k --weights internimage_t_1k_224.pth --probe linear --data imagefolder:pets
    allsight eval runs/generalist --interference

    With --probe and --interference the model stays as it is, and the results are also noted in the run
    folder, where the next report finds them.
    """
    from allsight.engine.predictor import flat

    if data is not None and probe is None:
        raise typer.BadParameter(
            "--data is for --probe; the run's own tasks have their data in their settings"
        )
    predictor = _load(run, weights, classes, trust)
    if drop_cameras:
        _score_without_cameras(predictor, run, task, as_json=as_json)
        return
    if interference:
        return _say_interference(predictor, run, as_json=as_json)
    if probe is not None:
        from allsight.cli.probing import probe_and_say

        return probe_and_say(run, predictor, probe.value, names=task, data=data, as_json=as_json)
    scores = predictor.score(task)
    for bad in (bad for score in scores.values() for bad in score.corrupt):
        print(f"note: {bad.task}: {bad.id}: {bad.reason}; left out of the score", file=sys.stderr)
    metrics = flat(scores)
    if as_json:
        print_json({"run": run, "weights": predictor.weights, "metrics": metrics})
    else:
        print(f"{run}: {predictor.weights}")
        print("\n".join(metric_lines(metrics)))


def _say_interference(predictor: Predictor, run: str, *, as_json: bool) -> None:
    """Measure, note and print what a step along the gradient of one task does to the loss of another."""
    found = predictor.interference()
    if predictor.folder is not None:
        found.note(predictor.folder, 0, f"weights {predictor.weights}")
    if as_json:
        print_json({"run": run, "weights": predictor.weights, **found.to_json()})
        return
    print(f"{run}: {predictor.weights}")
    print("what a step for the task of a column does to that of the row; 1 is the row's own step")
    width = max(map(len, found.tasks))
    print(" " * width + "".join(f"  {name:>{max(6, len(name))}}" for name in found.tasks))
    for name, row in zip(found.tasks, found.whole, strict=True):
        cells = zip(row, found.tasks, strict=True)
        print(f"{name:<{width}}" + "".join(f"  {value:>{max(6, len(n))}.2f}" for value, n in cells))


def _score_without_cameras(predictor: Predictor, run: str, names: list[str] | None, *, as_json: bool) -> None:
    from allsight.cli.driving import failure_lines, rig_tasks, without_each_camera

    table = without_each_camera(predictor, names)
    if as_json:
        print_json({"run": run, "weights": predictor.weights, "without": table})
        return
    tasks = rig_tasks(predictor, names)
    print(f"{run}: {predictor.weights}")
    print("\n".join(failure_lines(table, [f"{name}/{task.main_metric()}" for name, task in tasks.items()])))


def predict(
    run: Recipe,
    pictures: Annotated[
        list[Path],
        typer.Argument(
            metavar="PICTURE...",
            help="Files of pictures; for camera rigs one data set, nuscenes:PATH or infos:PATH.",
            show_default=False,
        ),
    ],
    weights: Weights = None,
    classes: Classes = None,
    task: Task = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Also write the pictures with the answers drawn."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Camera rigs: of the data set; default the task's.", show_default=False),
    ] = None,
    scenes: Annotated[
        int | None,
        typer.Option(
            "--scenes", min=1, metavar="N", help="Camera rigs: only the first N.", show_default=False
        ),
    ] = None,
    gif: Annotated[
        bool, typer.Option("--gif", help="Camera rigs: a moving picture a scene in place of single ones.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also show what the backbone sees, and what it costs; see below."),
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="Classes to print a picture.")] = 3,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Answer for pictures: labels on the terminal, drawn pictures with --out.

    \b
    allsight predict runs/joint_world photo.jpg
    allsight predict runs/joint_world *.jpg --out drawn --task scenes
    allsight predict internimage_t_in1k photo.jpg --weights internimage_t_1k_224.pth --classes imagenet.txt

    A picture that cannot be read is named and left out; the exit status is then 2.

    \b
    allsight predict runs/bevformer_micro_drives nuscenes:drives --scenes 1 --out drawn --gif
    With --explain: sampling points, displacements, effective receptive field and times of parts go to
    DIR/explained, without --out to RUN/explained, where the next report finds them.
    """
    from allsight.cli.driving import names_drives, predict_drives
    from allsight.config import ConfigError
    from allsight.tasks.rigs import RigTask

    predictor = _load(run, weights, classes, trust)
    if any(names_drives(str(picture)) for picture in pictures):
        if len(pictures) > 1:
            raise ConfigError(f"predict: expected one data set of drives alone, got {len(pictures)} words")
        found = predict_drives(
            predictor,
            str(pictures[0]),
            split=split,
            names=task,
            scenes=scenes,
            out=out,
            gif=gif,
            as_json=as_json,
        )
        if as_json:
            print_json(found)
        return
    for name in task or list(predictor.tasks):
        if isinstance(predictor.tasks.get(name), RigTask):
            raise ConfigError(
                f"predict: task '{name}' looks through camera rigs; name their data set, nuscenes:PATH or "
                "infos:PATH"
            )
    if explain and out is None and predictor.folder is None:
        raise typer.BadParameter(f"--explain: '{run}' is no run folder to write into; give --out DIR")
    readable, faults = _sorted_out(pictures)
    if faults:
        print("\n".join(faults), file=sys.stderr)
    found = []
    taken: set[Path] = set()
    for name in task or list(predictor.tasks):
        for picture, answer in zip(readable, predictor.predict_many(map(str, readable), name), strict=True):
            file = None if out is None else _free_name(out, picture, name, taken)
            if file is not None:
                _draw(picture, answer, file)
            if as_json:
                drawn = {} if file is None else {"drawn": str(file)}
                found.append({"picture": str(picture), **_plain(answer, top), **drawn})
            else:
                print(f"{picture}: {name}: {_in_words(answer, top)}{'' if file is None else f'  -> {file}'}")
    if as_json:
        print_json(found)
    if explain and readable:
        _explain(predictor, readable, out, task)
    if faults:
        raise typer.Exit(2)


def _explain(predictor: Predictor, pictures: list[Path], out: Path | None, task: list[str] | None) -> None:
    from allsight.view.explain import FOLDER, explain

    folder = out or predictor.folder
    assert folder is not None
    explain(predictor, pictures, folder / FOLDER, task=task[0] if task else None)
    print(f"explained: {folder / FOLDER / 'index.html'}", file=sys.stderr)


def _load(run: str, weights: str | None, classes: Path | None, trust: bool) -> Predictor:
    import allsight

    check_backend()
    predictor = allsight.load(run, weights, classes, trust=trust)
    for note in predictor.notes:
        print(f"note: {note}; taken instead: {predictor.weights}", file=sys.stderr)
    return predictor


def _sorted_out(pictures: list[Path]) -> tuple[list[Path], list[str]]:
    """The pictures that can be read, and a line for each other one."""
    from allsight.data.decode import read_picture
    from allsight.types import DataError

    readable, faults = [], []
    for picture in pictures:
        try:
            read_picture(picture)
        except DataError as error:
            faults.append(str(error))
        else:
            readable.append(picture)
    return readable, faults


def _plain(answer: Answer, top: int) -> dict[str, Any]:
    from allsight.types import ClassScores

    plain = answer.to_json()
    if isinstance(answer, ClassScores):
        plain["top"] = [[name, round(score, 6)] for name, score in answer.top(top)]
    return plain


def _in_words(answer: Answer, top: int) -> str:
    """An answer on one line."""
    from allsight.types import ClassScores, LabelMapAnswer, TextAnswer

    match answer:
        case ClassScores():
            return ", ".join(f"{name} {score:.3f}" for name, score in answer.top(top))
        case LabelMapAnswer():
            return ", ".join(
                f"{name} {share:.0%}" for name, share in list(answer.shares().items())[: top + 2]
            )
        case TextAnswer():
            return answer.text
        case _:
            return str(answer.to_json())


def _draw(picture: Path, answer: Answer, file: Path) -> None:
    from allsight.cli.drawing import draw_answer
    from allsight.draw import encode_png

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode_png(draw_answer(picture, answer)))


def _free_name(out: Path, picture: Path, task: str, taken: set[Path]) -> Path:
    """A file for a drawn picture; pictures of one name from several folders get numbers."""
    file, number = out / f"{picture.stem}-{task}.png", 1
    while file in taken:
        number += 1
        file = out / f"{picture.stem}-{task}-{number}.png"
    taken.add(file)
    return file
