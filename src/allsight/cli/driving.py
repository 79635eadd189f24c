"""What `allsight predict` and `allsight eval` do with camera rigs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allsight.config import ConfigError

if TYPE_CHECKING:
    from allsight.engine.predictor import Predictor
    from allsight.tasks.rigs import RigTask
    from allsight.types import Answer, Sample

FORMATS = ("nuscenes", "infos")
_SURE = 0.3
_GIF_TILE_PX = 240


def names_drives(text: str) -> bool:
    """Whether a word on the command line is a data set of drives, `FORMAT:PATH`."""
    return text.partition(":")[0] in FORMATS and ":" in text


def rig_tasks(predictor: Predictor, names: list[str] | None) -> dict[str, RigTask]:
    """The tasks on camera rigs among those that were asked for.

    Raises:
        ConfigError: There is none, or one that was named is not.
    """
    from allsight.tasks.rigs import RigTask

    chosen = {name: predictor.tasks.get(name) for name in names or predictor.tasks}
    found = {name: task for name, task in chosen.items() if isinstance(task, RigTask)}
    if not found or (names and len(found) < len(chosen)):
        wrong = ", ".join(name for name in chosen if name not in found)
        raise ConfigError(
            f"drives: no task on camera rigs: {wrong}; this model has {', '.join(predictor.tasks)}"
        )
    return found


def predict_drives(
    predictor: Predictor,
    data: str,
    *,
    split: str | None,
    names: list[str] | None,
    scenes: int | None,
    out: Path | None,
    gif: bool,
    as_json: bool,
) -> list[dict[str, Any]]:
    """Answer frame by frame, scene by scene; lines on the terminal, pictures in `out`.

    Returns:
        The answers as plain values, for `as_json`.
    """
    tasks = rig_tasks(predictor, names)
    first = next(iter(tasks.values()))
    format, _, place = data.partition(":")
    if Path(place).exists():
        # What is typed is meant from where it is typed; else it is one of the run's data sets.
        data = f"{format}:{Path(place).absolute()}"
    reader = first.drives_of(data, split or first.config.val_split)
    found: list[dict[str, Any]] = []
    start = 0
    for scene, length in enumerate(reader.sequences[:scenes]):
        frames = range(start, start + length)
        start += length
        drawn = []
        for index, sample, answers in _answered(predictor, reader, frames, list(tasks)):
            picture = None if out is None and not gif else _draw(reader, index, sample, answers, small=gif)
            file = None
            if picture is not None and gif:
                drawn.append(picture)
            elif picture is not None and out is not None:
                file = out / f"scene-{scene:04d}-{index - frames[0]:04d}.png"
                _write(file, picture)
            if as_json:
                place = {} if file is None else {"drawn": str(file)}
                found.append({"sample": sample.id, "answers": [a.to_json() for a in answers], **place})
            else:
                said = "; ".join(f"{answer.task}: {in_words(answer)}" for answer in answers)
                print(f"{sample.id}: {said}{'' if file is None else f'  -> {file}'}")
        if drawn:
            from allsight.view.drives import to_gif

            file = (out or Path(".")) / f"scene-{scene:04d}.gif"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(to_gif(drawn, 0.5))
            if not as_json:
                print(f"scene {scene}: {len(drawn)} frames  -> {file}")
    return found


def without_each_camera(predictor: Predictor, names: list[str] | None) -> dict[str, dict[str, float]]:
    """Camera that is missing ("" for none) -> `{"task/metric": value}`."""
    from allsight.config import replace
    from allsight.engine.predictor import Predictor, flat

    tasks = rig_tasks(predictor, names)
    cameras = next(iter(tasks.values())).cameras
    table = {}
    for camera in ("", *cameras):
        blind = {
            name: type(task)(
                replace(task.config, {"eval_without": (camera,) if camera else ()}),
                name=name,
                root=task.root,
                classes=task.given_classes,
            )
            for name, task in tasks.items()
        }
        judge = Predictor(
            predictor.config,
            predictor.model,
            {**predictor.tasks, **blind},
            predictor.device,
            weights=predictor.weights,
        )
        table[camera] = flat(judge.score(list(tasks)))
    return table


def failure_lines(table: dict[str, dict[str, float]], main: list[str]) -> list[str]:
    """The table as lines: a camera each, and what its loss costs."""
    width = max(len("without"), *(len(camera) for camera in table))
    lines = [f"{'without':{width}}  " + "  ".join(f"{name:>18}" for name in main)]
    whole = table[""]
    for camera, values in table.items():
        cells = [f"{values[name]:9.4f} {values[name] - whole[name]:+8.4f}" for name in main]
        lines.append(f"{camera or 'none':{width}}  " + "  ".join(f"{cell:>18}" for cell in cells))
    return lines


def in_words(answer: Answer) -> str:
    """An answer on camera rigs on one line."""
    from collections import Counter

    from allsight.types import BEVMapAnswer, Boxes3DAnswer, class_name

    match answer:
        case Boxes3DAnswer():
            sure = answer.labels[answer.scores >= _SURE].tolist()
            counts = Counter(class_name(label, answer.classes) for label in sure)
            return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
        case BEVMapAnswer():
            shares = answer.to_json()["shares"]
            return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        case _:
            return str(answer.to_json())


def _answered(
    predictor: Predictor, reader: Any, frames: range, names: list[str]
) -> Iterator[tuple[int, Sample, list[Answer]]]:
    """Each frame with the answers of all tasks; pictures are decoded once and not kept."""
    samples, *copies = tee((reader[n] for n in frames), 1 + len(names))
    answers = [predictor.predict_stream(copy, name) for copy, name in zip(copies, names, strict=True)]
    for index, sample, *given in zip(frames, samples, *answers, strict=True):
        yield index, sample, given


def _draw(reader: Any, index: int, sample: Sample, answers: list[Answer], *, small: bool) -> Any:
    from allsight.data.inspection import ego_path
    from allsight.view.drives import draw_answers

    size = {"tile_px": _GIF_TILE_PX} if small else {}
    return draw_answers(sample, answers, path_ref_m=ego_path(reader, index), **size)


def _write(file: Path, picture: Any) -> None:
    from allsight.draw import encode_png

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode_png(picture))
