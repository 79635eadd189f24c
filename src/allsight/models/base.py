"""The contract between a model and the engine: one module, one forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from allsight.config import Config, Configured, Family
from allsight.layers import DropPath
from allsight.layers.inference import ForInference
from allsight.types import Batch, FeatureSpec, Outputs, Query, State

MODELS = Family(
    "model",
    {
        "bevformer": "allsight.models.bevformer.model:BEVFormer",
        "classifier": "allsight.models.classifier:Classifier",
        "m3i": "allsight.models.m3i.model:M3I",
        "multi_head": "allsight.models.multi_head:MultiHead",
        "parts": "allsight.models.parts:Parts",
        "uni_perceiver": "allsight.models.uniperceiver.model:UniPerceiver",
    },
)


@runtime_checkable
class TaskOfModel(Protocol):
    """What a model may ask of a task. Models never import tasks."""

    def head(self, features: tuple[FeatureSpec, ...]) -> nn.Module: ...

    def cast(self, batch: Batch) -> Query: ...


@runtime_checkable
class CaptionSpace(Protocol):
    """A model that puts pictures and captions into one space, in which directions are compared."""

    def embed_pictures(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def embed_captions(
        self, tokens: Int64[Tensor, "k t"], is_token: Bool[Tensor, "k t"]
    ) -> Float[Tensor, "k d"]: ...


@runtime_checkable
class AnswersQueries(Protocol):
    """A model that answers any query, also one that no task of its training has asked."""

    @property
    def max_text(self) -> int:
        """Tokens of the longest text it reads."""
        ...

    def answer(self, query: Query, *, task: str = "") -> Outputs:
        """Outputs of a query, asked on behalf of a task (whose temperature and experts are used)."""
        ...


class Model(ForInference, Configured):
    """Base of all models; `Model.Config` is a field that holds any of them."""

    class Config(Config):
        pass

    family: ClassVar[Family | None] = MODELS

    @classmethod
    def for_tasks(cls, config: Any, tasks: Mapping[str, TaskOfModel]) -> TaskModel:
        """The TaskModel a configuration stands for."""
        raise NotImplementedError(f"{cls.__name__} has no adapter for training")


class TaskModel(Model):
    """What the engine drives.

    Built as `Class(config, tasks)`. `forward(batch, state)` returns `(outputs, state)`: outputs are tensors
    in dicts, tuples or dataclasses registered with `torch.export.register_dataclass`; state is None or
    `dict[str, Tensor]` whose rows are the batch's rows, returned detached. An incoming None means that all
    streams start here; rows that `batch.starts` marks hold arbitrary values and must be ignored.
    """

    class Config(Model.Config):
        pass

    def __init__(self, config: Any, tasks: Mapping[str, TaskOfModel]) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def for_tasks(cls, config: Any, tasks: Mapping[str, TaskOfModel]) -> TaskModel:
        return cls(config, tasks)

    def forward(self, batch: Batch, state: State = None) -> tuple[Outputs, State]:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def expect_steps(self, steps: int) -> None:
        """Told before the first step, also of a resumed run: how many optimiser steps it has in all."""

    def after_step(self, step: int) -> None:
        """What changes once per optimiser step that happened (EMA targets, clamps, queues).

        Runs on the bare module after `optimizer.step()` and before the EMA, the same on every rank, without
        communication of its own.
        """

    def train_quietly(self) -> None:
        """Training mode with nothing that is random: what losses need, for measurements."""
        self.train()
        for module in self.modules():
            if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm | DropPath):
                module.eval()

    def part_of(self, parameter: str) -> str:
        """The part of the model that a parameter is counted in where people look at parts."""
        return ".".join(parameter.split(".")[:-1][:5])

    def after_skip(self) -> None:
        """What a step that was skipped has left behind is dropped: it changes nothing."""
        for module in self.modules():
            forget = getattr(module, "forget_offers", None)
            if forget is not None:
                forget()

    def monitors(self, step: int) -> Mapping[str, float] | None:
        """Numbers about how training goes, for the events of a step that happened; None: none this time.

        Asked after `after_step`, on every rank, of which each says what it saw; whether there are any must be
        the same on all. The engine takes means over ranks.
        """
        return None

    def alarms(self, step: int, values: Mapping[str, float]) -> tuple[str, ...]:
        """What the monitors of a step warn of, one line each; `values` are means over ranks."""
        return ()

    def own_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights under this model's names; models without published weights change nothing."""
        return weights

    def cause_of_misfit(self, weights: Mapping[str, Tensor]) -> str:
        """What most likely sets weights, as they lie in a file, apart from this model; "" where unknown."""
        return ""


class PlainModel(Model):
    """Base of models with a natural signature, `classifier(images)`; `for_tasks` wraps one in its adapter."""

    class Config(Model.Config):
        pass


def model_for_tasks(config: Any, tasks: Mapping[str, TaskOfModel]) -> TaskModel:
    """Build the TaskModel that `config` stands for."""
    return type(config).of.for_tasks(config, tasks)


def num_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """How many numbers a module holds as parameters; shared ones count once."""
    parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad or not trainable]
    return sum(p.numel() for p in parameters)
