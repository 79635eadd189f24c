"""ONNX: the same program for other runtimes. Needs the extra `export`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from allsight.config import ConfigError
from allsight.launch.export.programs import quiet
from allsight.launch.export.subject import Subject

OLDEST_OPSET = 20
"""From here on `GridSample` has the name `linear` for its mode, and `Gelu` is an operator."""
_LARGEST_BYTES = 1_500_000_000
"""A file of the format ends at 2 GB; beyond this the weights go into a file beside it."""


def needed(name: str) -> Any:
    """A package of the extra.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"export: format onnx needs the package {name} ({error}); pip install 'allsight[export]'"
        ) from None


def check_opset(opset: int) -> None:
    """Refuse versions that lack operators.

    Raises:
        ConfigError: Too old.
    """
    if opset < OLDEST_OPSET:
        raise ConfigError(f"export: opset: expected at least {OLDEST_OPSET} (GridSample), got {opset}")


def save(program: ExportedProgram, subject: Subject, file: Path, *, opset: int) -> None:
    """Translate and write; large weights go into `NAME.onnx.data` beside it.

    Raises:
        ConfigError: The extra is not installed, or an operator of the model has no translation.
    """
    for package in ("onnx", "onnxscript"):
        needed(package)
    try:
        with quiet(), _no_log():
            translated: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=["images"],
                output_names=list(subject.outputs),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        line = str(error).splitlines()[0]
        raise ConfigError(
            f"export: the model cannot be written as ONNX with opset {opset}: {line}"
        ) from error
    graph = translated.model.graph
    _name_sizes(graph)
    translated.model.metadata_props.update(subject.metadata)
    translated.model.producer_name, translated.model.producer_version = (
        "allsight",
        subject.metadata["allsight_version"],
    )
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    translated.save(str(file), external_data=weights > _LARGEST_BYTES)


def runner(file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The function in a file, run by onnxruntime on the CPU.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()}))

    return run


def _name_sizes(graph: Any) -> None:
    """Call the open sizes of the picture what they are, wherever they occur."""
    ir = import_module("onnx_ir")
    names = {
        str(size): name
        for size, name in zip(graph.inputs[0].shape, ("batch", "channels", "height", "width"), strict=True)
        if not isinstance(size, int)
    }
    if not names:
        return
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names))
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                size if isinstance(size, int) else pattern.sub(lambda found: names[found[0]], str(size.value))
                for size in value.shape
            )


@contextmanager
def _no_log() -> Iterator[None]:
    """The exporter tells of packages that it does not find."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
