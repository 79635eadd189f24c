"""`allsight export`: a model as a file that runs without allsight."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from allsight.config import ConfigError
from allsight.engine.predictor import Predictor
from allsight.launch.export import onnx_file, programs
from allsight.launch.export.subject import Input, Part, Subject, subject_of

Format = Literal["onnx", "torch_export"]
_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch_export"}
MAY_DIFFER = 1e-4
"""Largest difference to PyTorch, in units of the largest number of an output."""

__all__ = ["MAY_DIFFER", "Check", "Exported", "Format", "export"]


@dataclass(frozen=True)
class Check:
    """One comparison with PyTorch: the shape of the pictures and the largest relative difference."""

    shape: tuple[int, int, int, int]
    difference: float


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        files: The file, and that of large weights beside it.
        format: Of it.
        outputs: Names of the tensors it gives.
        checks: Comparisons with PyTorch; empty if none were wanted.
    """

    files: tuple[Path, ...]
    format: Format
    outputs: tuple[str, ...]
    checks: tuple[Check, ...]


def export(
    source: nn.Module | Predictor,
    out: str | Path,
    *,
    format: Format | None = None,
    task: str | None = None,
    part: Part = "model",
    size: int | tuple[int, int] | None = None,
    dynamic: bool = False,
    input: Input = "normalised",
    opset: int = onnx_file.OLDEST_OPSET,
    check: bool = True,
) -> Exported:
    """Write a model as a file that runs without allsight, and compare what it gives with PyTorch.

    The file holds the model prepared for inference in plain operators: deformable sampling is `grid_sample`
    (ONNX: `GridSample`). Its input is `images` [b, 3, h, w]; class names, mean, std, the settings and what
    the input must look like stand in its metadata. It appears at its place only after it passed.

    Args:
        source: A predictor (`allsight.load`), or a module from pictures to tensors, such as an `InternImage`
            or a `Classifier`.
        out: File to write.
        format: `onnx` (needs the extra `export`) or `torch_export`; None goes by the suffix, `.onnx`, `.pt2`.
        task: Of a predictor with several.
        part: The whole model, or its backbone with all its maps.
        size: Height and width that are traced, in pixels; None takes those of the task, else 224.
        dynamic: Leave batch, height and width open; else the batch is 1.
        input: `normalised` floating point, or `uint8` to be normalised inside.
        opset: Version of ONNX's operators.
        check: Compare three batches (of three sizes if they are open) with PyTorch.

    Raises:
        ConfigError: A setting does not fit, the extra is missing, the model cannot be exported, or the file
            gives something else than PyTorch (nothing is written then).
    """
    out = Path(out)
    chosen = format or _SUFFIXES.get(out.suffix)
    if chosen is None or chosen not in get_args(Format):
        raise ConfigError(
            f"export: format: cannot tell from '{out.name}'; name it .onnx or .pt2, or give the format "
            f"({', '.join(get_args(Format))})"
        )
    if chosen == "onnx":
        onnx_file.check_opset(opset)
        for package in ("onnx", "onnxscript", *(["onnxruntime"] if check else [])):
            onnx_file.needed(package)
    out.parent.mkdir(parents=True, exist_ok=True)
    subject = subject_of(source, task=task, part=part, input=input, size=size)
    program = programs.trace(subject, dynamic=dynamic)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        written = Path(folder) / out.name
        if chosen == "onnx":
            onnx_file.save(program, subject, written, opset=opset)
        else:
            programs.save(program, subject, written)
        checks: tuple[Check, ...] = ()
        if check:
            run = onnx_file.runner(written) if chosen == "onnx" else programs.runner(written)
            checks = tuple(_compare(run, subject, shapes_to_check(subject, dynamic=dynamic)))
        files = sorted(Path(folder).iterdir(), key=lambda file: file != written)
        moved = tuple(Path(shutil.move(file, out.parent / file.name)) for file in files)
    return Exported(moved, chosen, subject.outputs, checks)


def shapes_to_check(subject: Subject, *, dynamic: bool) -> list[tuple[int, int, int, int]]:
    """Three batches: of the size that was traced, or of three sizes, odd ones where they are taken."""
    height, width = subject.hw_px
    if not dynamic:
        return [(1, 3, height, width)] * 3
    step, least = subject.multiple, -(-subject.least_px // subject.multiple) * subject.multiple
    smaller, larger = (height - 11, width + 7) if step == 1 else (height - step, width + step)
    return [
        (1, 3, height, width),
        (2, 3, max(least, smaller), larger),
        (1, 3, height + (5 if step == 1 else step), max(least, width - (9 if step == 1 else step))),
    ]


def _compare(
    run: Callable[[Tensor], tuple[Tensor, ...]], subject: Subject, shapes: list[tuple[int, int, int, int]]
) -> Iterator[Check]:
    for number, shape in enumerate(shapes):
        images = subject.pictures(shape[0], *shape[2:], seed=number)
        with torch.no_grad():
            expected = subject.original(images)
        actual = run(images)
        for name, ours, theirs in zip(subject.outputs, expected, actual, strict=True):
            if ours.shape != theirs.shape:
                raise ConfigError(
                    f"export: check: output '{name}' of pictures {list(shape)} has shape "
                    f"{list(theirs.shape)}, in PyTorch {list(ours.shape)}; nothing was written"
                )
        worst = max(_relative(theirs, ours) for ours, theirs in zip(expected, actual, strict=True))
        if not worst <= MAY_DIFFER:
            raise ConfigError(
                f"export: check: pictures {list(shape)} give results that differ from PyTorch's by "
                f"{worst:.1e} of the largest (allowed: {MAY_DIFFER:.0e}); nothing was written"
            )
        yield Check(shape, worst)


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
