"""`allsight export`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from allsight.cli.words import Classes, Json, Recipe, Trust, Weights, check_backend, check_folder, print_json


def export(
    source: Recipe,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .onnx or .pt2.", show_default=False)
    ],
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="onnx|torch_export", help="Default: by the suffix of OUT."),
    ] = None,
    weights: Weights = None,
    classes: Classes = None,
    task: Annotated[str | None, typer.Option("--task", help="Of a model with several.")] = None,
    part: Annotated[
        str, typer.Option("--part", metavar="model|backbone", help="The backbone gives all its maps.")
    ] = "model",
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIDE|HxW", help="Pixels that are traced; default the task's."),
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Leave batch, height and width open (slower to write).")
    ] = False,
    input: Annotated[
        str,
        typer.Option("--input", metavar="normalised|uint8", help="uint8: mean and std are applied inside."),
    ] = "normalised",
    opset: Annotated[int, typer.Option("--opset", help="Version of ONNX's operators.")] = 20,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare three batches with PyTorch first.")
    ] = True,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Write a model as a file that runs without allsight, checked against PyTorch.

    \b
    allsight export runs/joint_world scenes.onnx --task scenes --dynamic
    allsight export internimage_t_in1k t.onnx --weights internimage_t_1k_224.pth --input uint8
    allsight export internimage_t_in1k t.pt2 --weights random --part backbone --size 256x320

    Deformable sampling becomes `grid_sample` (ONNX: GridSample). ONNX needs the extra `export`.
    """
    import allsight
    from allsight.launch.export import export as write

    hw_px = _size(size)
    _one_of("--format", format, ("onnx", "torch_export", None))
    _one_of("--part", part, ("model", "backbone"))
    _one_of("--input", input, ("normalised", "uint8"))
    check_backend()
    check_folder(out.parent)
    predictor = allsight.load(source, weights, classes, device="cpu", trust=trust)
    options: dict[str, Any] = {"format": format, "part": part, "input": input}
    done = write(predictor, out, task=task, size=hw_px, dynamic=dynamic, opset=opset, check=check, **options)
    if as_json:
        checks = [{"shape": list(each.shape), "difference": each.difference} for each in done.checks]
        print_json(
            {
                "files": [str(file) for file in done.files],
                "format": done.format,
                "weights": predictor.weights,
                "outputs": list(done.outputs),
                "checks": checks,
            }
        )
        return
    for each in done.checks:
        shape = " x ".join(map(str, each.shape))
        print(f"checked: {shape} differs from PyTorch by {each.difference:.0e} of the largest output")
    print(f"{', '.join(map(str, done.files))}: {predictor.weights}; gives {', '.join(done.outputs)}")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None:
        raise typer.BadParameter(f"--size: expected pixels as 224 or 256x320 (height x width), got '{text}'")
    return int(found[1]), int(found[2] or found[1])


def _one_of(option: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        known = ", ".join(choice for choice in choices if choice)
        raise typer.BadParameter(f"{option}: expected one of {known}, got '{value}'")
