"""`torch.export`: the model as a program of plain PyTorch operators."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from allsight import ops
from allsight.config import ConfigError
from allsight.launch.export.subject import Subject

_METADATA = "allsight.json"


def trace(subject: Subject, *, dynamic: bool) -> ExportedProgram:
    """The program of the prepared model; operators of ours become `grid_sample` and what stands around it.

    Args:
        subject: What to trace.
        dynamic: Leave batch, height and width open.

    Raises:
        ConfigError: The model does something that cannot be traced, or depends on a size that is left open.
    """
    if dynamic and min(subject.hw_px) < subject.least_px:
        raise ConfigError(
            f"export: size: expected sides of at least {subject.least_px} where sizes are open, got "
            f"{subject.hw_px}"
        )
    example = subject.pictures(2 if dynamic else 1, *subject.hw_px)
    shapes = {0: Dim("batch", min=1), 2: _side("height", subject), 3: _side("width", subject)}
    try:
        with ops.use_backend("reference"), torch.no_grad(), quiet():
            # Sizes of inner maps are compared in ways that the solver cannot always prove beforehand.
            return torch.export.export(
                subject.prepared,
                (example,),
                dynamic_shapes=(shapes,) if dynamic else None,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except ConfigError:
        raise
    except Exception as error:
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"export: the model cannot be traced: {line.strip()}"
            + ("; try without dynamic sizes" if dynamic else "")
        ) from error


def _side(name: str, subject: Subject) -> Any:
    if subject.multiple == 1:
        return Dim(name, min=subject.least_px)
    least = -(-subject.least_px // subject.multiple)
    return subject.multiple * Dim(f"{name}_in_{subject.multiple}", min=least)


def save(program: ExportedProgram, subject: Subject, file: Path) -> None:
    """Write the program as `.pt2`, with the metadata in it as `allsight.json`."""
    with quiet():
        torch.export.save(program, file, extra_files={_METADATA: json.dumps(dict(subject.metadata))})


def runner(file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The function in a file, as anybody would load it."""
    with quiet():
        module = torch.export.load(file).module()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return module(images)

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """PyTorch's exporters warn of each other's interfaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
