"""Several models that train as one: each task goes to the part that can do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from allsight.config import ConfigError, Mixture, did_you_mean
from allsight.models.base import AnswersQueries, Model, TaskModel, TaskOfModel, model_for_tasks
from allsight.models.multi_head import named_modules
from allsight.types import Batch, Outputs, Query, State


class Parts(TaskModel):
    """TaskModels side by side behind one forward, so that DDP and FSDP see one module.

    Each part is built with the tasks routed to it and sees their batches, temporal state and `after_step`.

    Args:
        config: Its settings.
        tasks: All tasks of the run.
    Raises:
        ConfigError: A task without a part, a part without a task, or a name that a module cannot have.
    """

    class Config(TaskModel.Config):
        parts: Mixture[Model.Config]
        """Name -> model."""
        route: Mixture[str]
        """Task -> name of its part."""

        @model_validator(mode="after")
        def _routes_lead_somewhere(self) -> Parts.Config:
            for task, part in self.route.items():
                if part not in self.parts:
                    raise ValueError(f"route.{task}: no part '{part}'{did_you_mean(part, self.parts)}")
            idle = [name for name in self.parts if name not in self.route.values()]
            if idle:
                raise ValueError(f"parts.{idle[0]}: no task is routed to it; route one, or leave it out")
            return self

    config: Config

    def __init__(self, config: Config, tasks: Mapping[str, TaskOfModel]) -> None:
        super().__init__(config, tasks)
        lost = [task for task in tasks if task not in config.route]
        if lost:
            choices = ", ".join(config.parts)
            raise ConfigError(f"config.model.route: task '{lost[0]}' has no part; choose one of {choices}")
        self.parts = named_modules(
            {name: self._part(name, part, tasks) for name, part in config.parts.items()}, what="model.parts"
        )

    def forward(self, batch: Batch, state: State = None) -> tuple[Outputs, State]:
        """Outputs and state of the part that the batch's task is routed to."""
        return self.parts[self.config.route[batch.task]](batch, state)

    @property
    def max_text(self) -> int:
        """Of the part that reads least, of those that answer queries; see `AnswersQueries`."""
        return min(
            (part.max_text for part in self.parts.values() if isinstance(part, AnswersQueries)), default=0
        )

    def answer(self, query: Query, *, task: str = "") -> Outputs:
        """The answer of the part that `task` is routed to; see `AnswersQueries`.

        Raises:
            ConfigError: It answers no queries.
        """
        part = self.parts[self.config.route[task]]
        if not isinstance(part, AnswersQueries):
            raise ConfigError(f"task '{task}' belongs to a model with heads, which answers no questions")
        return part.answer(query, task=task)

    def train_quietly(self) -> None:
        self.training = True
        for part in self.parts.values():
            assert isinstance(part, TaskModel)
            part.train_quietly()

    def part_of(self, parameter: str) -> str:
        """Those of the parts, under their names."""
        _, name, rest = parameter.split(".", 2)
        part = self.parts[name]
        assert isinstance(part, TaskModel)
        return f"{name}: {part.part_of(rest)}"

    def expect_steps(self, steps: int) -> None:
        """Told to each part."""
        for part in self.parts.values():
            assert isinstance(part, TaskModel)
            part.expect_steps(steps)

    def after_step(self, step: int) -> None:
        """Each part's `after_step`, in their order; also of parts without a batch in this step."""
        for part in self.parts.values():
            assert isinstance(part, TaskModel)
            part.after_step(step)

    def monitors(self, step: int) -> Mapping[str, float] | None:
        """Those of all parts, under `part/name`."""
        found: dict[str, float] | None = None
        for name, part in self.parts.items():
            assert isinstance(part, TaskModel)
            own = part.monitors(step)
            if own is not None:
                found = (found or {}) | {f"{name}/{key}": value for key, value in own.items()}
        return found

    def alarms(self, step: int, values: Mapping[str, float]) -> tuple[str, ...]:
        """Those of all parts."""
        texts: list[str] = []
        for name, part in self.parts.items():
            assert isinstance(part, TaskModel)
            own = {k.removeprefix(f"{name}/"): v for k, v in values.items() if k.startswith(f"{name}/")}
            texts += part.alarms(step, own) if own else ()
        return tuple(texts)

    def _part(self, name: str, part: Any, tasks: Mapping[str, TaskOfModel]) -> TaskModel:
        own = {task: tasks[task] for task in tasks if self.config.route[task] == name}
        return model_for_tasks(part, own)
