"""What is exported of a model: one function from pictures to named tensors, and what users need to know."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allsight.backbones import Backbone
from allsight.config import ConfigError, dump_yaml
from allsight.config import dump as plain
from allsight.engine.predictor import Predictor
from allsight.layers import prepare_for_inference
from allsight.models import Classifier, TaskModel
from allsight.types import Batch, FeatureSpec

Input = Literal["normalised", "uint8"]
Part = Literal["model", "backbone"]

_SIZE_PX = 224


@dataclass(frozen=True)
class Subject:
    """One function to export.

    Args:
        original: Pictures -> tuple of tensors, on the operators of this machine; what results are checked
            against.
        prepared: The same with weights laid out for inference.
        outputs: Names of the tensors.
        metadata: What whoever runs the file needs to know.
        input: `normalised` floating point, or `uint8`.
        hw_px: Size of the picture that is traced.
        least_px: Smallest open side; below it a map would be a single cell, which programs treat apart.
        multiple: What sides must be divisible by.
    """

    original: nn.Module
    prepared: nn.Module
    outputs: tuple[str, ...]
    metadata: Mapping[str, str]
    input: Input
    hw_px: tuple[int, int]
    least_px: int
    multiple: int

    def pictures(self, batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
        """Noise of the kind that the function takes."""
        generator = torch.Generator().manual_seed(seed)
        if self.input == "uint8":
            return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
        return torch.randn(batch, 3, height, width, generator=generator)


def subject_of(
    source: nn.Module | Predictor,
    *,
    task: str | None = None,
    part: Part = "model",
    input: Input = "normalised",
    size: int | tuple[int, int] | None = None,
) -> Subject:
    """Find out what to export.

    Raises:
        ConfigError: No such task or part, outputs that are no tensors, or a size the model does not take.
    """
    metadata = {"producer": "allsight", "allsight_version": version("allsight")}
    if isinstance(source, Predictor):
        name = _task_name(source, task)
        metadata |= {"task": name, "weights": source.weights, "recipe": source.config.name}
        classes = source.tasks[name].classes
        if classes and part == "model":
            metadata["classes"] = json.dumps(list(classes), ensure_ascii=False)
        size = size or _size_of(source.tasks[name])
        model: nn.Module = source.model
    else:
        if task is not None or isinstance(source, TaskModel):
            raise ConfigError(
                "export: task: only a predictor (allsight.load) has tasks; give one, or a plain model"
            )
        name, model = "", source
    net = next((module for module in model.modules() if isinstance(module, Backbone)), None)
    if part == "backbone":
        if net is None:
            raise ConfigError(f"export: part: {type(model).__name__} has no backbone; leave it out")
        model = net
    specs = net.feature_specs if model is net and net is not None else ()
    model = _float32_copy(model)
    function = _OfTask(model, name) if isinstance(model, TaskModel) else model
    multiple = max(getattr(module, "size_multiple", 1) for module in model.modules())
    least = 1 + max((spec.stride for spec in net.feature_specs), default=1) if net is not None else 2
    if net is not None:
        metadata |= {"mean": json.dumps(net.config.mean), "std": json.dumps(net.config.std)}
    config = getattr(model, "config", None)
    if config is not None:
        metadata["config"] = dump_yaml(plain(config))
    metadata["input"] = _input_in_words(input)
    hw_px = (size, size) if isinstance(size, int) else size or (_SIZE_PX, _SIZE_PX)
    if min(hw_px) < 1 or any(side % multiple for side in hw_px):
        divisible = f"multiples of {multiple}" if multiple > 1 else "at least 1"
        raise ConfigError(f"export: size: expected sides in pixels, {divisible}, got {hw_px}")
    tensors = _Tensors(function, specs)
    probe = Subject(tensors, tensors, (), {}, input, hw_px, least, multiple)
    with torch.no_grad():
        tensors(probe.pictures(1, *hw_px))
    prepared = _Tensors(prepare_for_inference(function), specs)
    return Subject(tensors, prepared, tensors.names, metadata, input, hw_px, least, multiple)


class _OfTask(nn.Module):
    """What a model says to pictures of one task."""

    def __init__(self, model: TaskModel, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images: Tensor) -> Any:
        return self.model(Batch(self.task, (), {"image": images}))[0]


class _Tensors(nn.Module):
    """A function whose outputs are a tuple of tensors; `names` is known after the first call."""

    def __init__(self, function: nn.Module, specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        self.function, self.specs = function, specs
        self.names: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.function(images)
        if isinstance(outputs, Tensor):
            named = {"logits" if isinstance(self.function, Classifier) else "output": outputs}
        elif isinstance(outputs, Mapping):
            named = dict(outputs)
        elif isinstance(outputs, tuple | list):
            strides = [f"stride_{spec.stride}" for spec in self.specs]
            named = dict(zip(strides or [f"output_{i}" for i in range(len(outputs))], outputs, strict=True))
        else:
            named = {"output": outputs}
        for name, output in named.items():
            if not isinstance(output, Tensor):
                raise ConfigError(
                    f"export: output '{name}' is a {type(output).__name__}; only tensors, or a dictionary or "
                    "tuple of them, can be exported"
                )
        self.names = tuple(named)
        return tuple(named.values())


def _task_name(predictor: Predictor, task: str | None) -> str:
    if task is None and len(predictor.tasks) > 1:
        raise ConfigError(f"export: task: name one of: {', '.join(predictor.tasks)}")
    name = task or next(iter(predictor.tasks))
    if name not in predictor.tasks:
        raise ConfigError(f"export: task: no task '{name}'; there are {', '.join(predictor.tasks)}")
    return name


def _size_of(task: Any) -> int | tuple[int, int] | None:
    """That of the pictures a task makes."""
    return next(
        (getattr(task.config, name) for name in ("size_px", "canvas_hw_px") if hasattr(task.config, name)),
        None,
    )


def _float32_copy(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model).cpu().float()
    return copied.eval().requires_grad_(False)


def _input_in_words(input: Input) -> str:
    if input == "uint8":
        return "uint8 RGB, 0 to 255, [batch, 3, height, width]; mean and std are applied inside"
    return "float32 RGB, (value / 255 - mean) / std, [batch, 3, height, width]"
