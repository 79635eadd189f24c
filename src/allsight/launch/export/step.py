"""A streaming step of BEVFormer as an ONNX file: one frame and a state in, boxes and the next state out."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allsight import ops
from allsight.config import ConfigError
from allsight.launch.export import onnx_file
from allsight.launch.export.programs import quiet
from allsight.models import BEVFormer
from allsight.models.bevformer import DetectionHead, TrainableBEVFormer
from allsight.models.bevformer.stream import BEVStep
from allsight.types import MultiCameraBatch

MAY_DIFFER = 1e-4


@dataclass(frozen=True)
class ExportedStep:
    """What was written.

    Args:
        file: The file.
        inputs, outputs: Names of its tensors; `next_X` of a step is `past_X` of the following one.
        differences: Largest difference to PyTorch of each frame that was compared, in units of the largest
            number of its tensor.
    """

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    differences: tuple[float, ...]


def export_step(
    model: BEVFormer | TrainableBEVFormer,
    frames: list[MultiCameraBatch],
    out: Path | str,
    *,
    task: str | None = None,
    classes: tuple[str, ...] = (),
    max_cells: int | None = None,
    opset: int = onnx_file.OLDEST_OPSET,
) -> ExportedStep:
    """Write the step, run all frames through the file and through PyTorch, and compare each.

    Shapes are those of the first frame; geometry, poses and times are inputs. The state before the first
    frame is zeros, with `past_has_past` false.

    Args:
        model: A plain model, or that of a run.
        frames: Consecutive ones of one stream, the first to trace, all to compare.
        out: File to write, `.onnx`; it appears only after it passed.
        task: Of a run with several tasks that find boxes.
        classes: Names, which go into the file's metadata.
        max_cells: See `BEVStep`.
        opset: Version of ONNX's operators.
    Raises:
        ConfigError: The extra `export` is missing, the model has no such task, cannot be exported, or the
            file gives something else than PyTorch.
    """
    onnx_file.check_opset(opset)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        onnx_file.needed(package)
    model = copy.deepcopy(model).cpu().float()
    try:
        step = BEVStep(model.network, _head(model, task), max_cells=max_cells)
    except ValueError as error:
        raise ConfigError(f"export: {error}") from None
    state = model.network.memory.start(len(frames[0].images), model.network.encoder.queries.detach())
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        written = Path(folder) / out.name
        _write(step, _inputs(frames[0], state), written, classes, opset)
        differences = tuple(_compare(step, frames, state, written))
        if not max(differences) <= MAY_DIFFER:
            raise ConfigError(
                f"export: check: the file differs from PyTorch by {max(differences):.1e} of the largest "
                f"(allowed: {MAY_DIFFER:.0e}); nothing was written"
            )
        shutil.move(written, out)
    return ExportedStep(out, BEVStep.input_names, BEVStep.output_names, differences)


def _head(model: BEVFormer | TrainableBEVFormer, task: str | None) -> DetectionHead:
    if isinstance(model, BEVFormer):
        return model.head
    heads = {name: head for name, head in model.heads.items() if isinstance(head, DetectionHead)}
    if task is None and len(heads) == 1:
        return next(iter(heads.values()))
    if task not in heads:
        raise ConfigError(f"export: task: expected one that finds boxes, of {', '.join(heads) or 'none'}")
    return heads[task]


def _inputs(frame: MultiCameraBatch, state: dict[str, Tensor]) -> tuple[Tensor, ...]:
    rig = frame.rig
    geometry = (rig.img_from_ref, rig.ego_from_ref, rig.world_from_ref, rig.time_s)
    return (frame.images, *geometry, *(state[name] for name in BEVStep.state_names))


def _write(
    step: BEVStep, example: tuple[Tensor, ...], file: Path, classes: tuple[str, ...], opset: int
) -> None:
    try:
        with ops.use_backend("reference"), torch.no_grad(), quiet():
            program = torch.export.export(step, example)
            written: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=list(BEVStep.input_names),
                output_names=list(BEVStep.output_names),
                verbose=False,
            )
    except Exception as error:
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"export: the step cannot be written as ONNX: {line.strip()}") from error
    facts = {"producer": "allsight", "allsight_version": version("allsight"), "classes": json.dumps(classes)}
    written.model.metadata_props.update(facts)
    written.save(str(file), external_data=False)


def _compare(
    step: BEVStep, frames: list[MultiCameraBatch], state: dict[str, Tensor], file: Path
) -> list[float]:
    """Each keeps its own state, as it would be used."""
    runtime = onnx_file.needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    own: dict[str, Tensor] = dict(state)
    theirs: dict[str, Tensor] = dict(state)
    differences = []
    names: tuple[str, ...] = BEVStep.state_names
    for frame in frames:
        with torch.no_grad():
            expected = step(*_inputs(frame, own))
        fed = dict(zip(BEVStep.input_names, _inputs(frame, theirs), strict=True))
        # A program leaves out what it does not need.
        wanted = {one.name for one in session.get_inputs()}
        arrays = session.run(None, {k: v.contiguous().numpy() for k, v in fed.items() if k in wanted})
        found = tuple(map(torch.from_numpy, arrays))
        own = dict(zip(names, expected[-len(names) :], strict=True))
        theirs = dict(zip(names, found[-len(names) :], strict=True))
        differences.append(
            max(_relative(theirs_, ours) for theirs_, ours in zip(found, expected, strict=True))
        )
    return differences


def _relative(actual: Tensor, expected: Tensor) -> float:
    scale = expected.double().abs().max().clamp_min(1e-12)
    return float((actual.double() - expected.double()).abs().max() / scale)
