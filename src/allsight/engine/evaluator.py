"""Judging a model on the validation samples of its tasks, each sample once, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allsight.data.corrupt import judged_over
from allsight.data.loader import EvaluationLoader
from allsight.data.workers import Workforce
from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks
from allsight.engine.memory import TemporalMemory
from allsight.engine.precision import Precision
from allsight.engine.predictions import PredictionWriter
from allsight.models.base import TaskModel
from allsight.tasks.base import Metric, Task
from allsight.types import CorruptSample


@dataclass(frozen=True)
class TaskScore:
    """Result of one task: its metrics, the samples that could not be read, and why pictures were not kept."""

    values: Mapping[str, float]
    seconds: float
    samples: int
    corrupt: tuple[CorruptSample, ...]
    problem: str = ""
    excess: str = ""
    """What to say if more samples could not be read than `data.max_corrupt_fraction` allows."""


class Evaluator:
    """Evaluates tasks one after the other.

    Args:
        config: The run.
        folder: Run folder for `predictions/`; None keeps no pictures.
    """

    def __init__(
        self,
        config: RunConfig,
        tasks: Mapping[str, Task],
        precision: Precision,
        ranks: Ranks,
        folder: Path | None,
    ) -> None:
        self._config, self._tasks, self._precision = config, tasks, precision
        self._ranks, self._folder = ranks, folder
        self._readers: dict[str, Any] = {}

    @torch.inference_mode()
    def evaluate(
        self,
        model: TaskModel,
        step: int,
        names: list[str] | None = None,
        *,
        workforce: Workforce | None = None,
    ) -> dict[str, TaskScore]:
        """The scores of tasks (all by default), the same on every rank.

        Args:
            step: Goes into the folder of the pictures that are kept.
            workforce: The training loader's, to let its processes make the batches.
        """
        was_training = model.training
        model.eval()
        try:
            return {name: self._evaluate(model, name, step, workforce) for name in names or list(self._tasks)}
        finally:
            model.train(was_training)

    def _evaluate(self, model: TaskModel, name: str, step: int, workforce: Workforce | None) -> TaskScore:
        task, begun = self._tasks[name], time.perf_counter()
        if name not in self._readers:
            self._readers[name] = task.reader("val")
        metric, memory = task.metric(), TemporalMemory()
        writer = PredictionWriter(self._folder, step, name) if self._folder is not None else None
        corrupt: list[CorruptSample] = []
        seen = 0
        loader = EvaluationLoader(
            task,
            self._readers[name],
            batch_size=self._batch_size(task),
            rank=self._ranks.rank,
            world=self._ranks.world,
            max_samples=self._config.eval.max_samples,
            workforce=workforce,
        )
        shown = loader.spread(self._config.eval.pictures)
        for batch in loader:
            corrupt.extend(batch.corrupt)
            if not len(batch):
                continue
            batch, state = memory.recall(batch.to(self._ranks.device))
            with self._precision.forward():
                outputs, state = model(batch, state)
            memory.keep(batch, state)
            answers = task.decode(self._precision.widen(outputs), batch)
            metric.update(answers, batch)
            if writer is not None:
                writer.add(batch, answers, task, shown, loader.positions(batch, seen))
            seen += len(batch)
        metric, seen, corrupt = self._merge(metric, seen, corrupt, task)
        values = metric.compute()
        problem = writer.finish(values, metric, task, self._ranks) if writer is not None else ""
        excess = self._excess(name, corrupt, seen, len(self._readers[name]))
        return TaskScore(values, time.perf_counter() - begun, seen, tuple(corrupt), problem, excess)

    def _excess(self, name: str, corrupt: list[CorruptSample], seen: int, size: int) -> str:
        limit = self._config.data.max_corrupt_fraction
        share = len(corrupt) / max(1, judged_over(seen + len(corrupt), size))
        if share <= limit and (seen or not corrupt):
            return ""
        return (
            f"task '{name}': {len(corrupt)} of {seen + len(corrupt)} validation samples cannot be used "
            f"(data.max_corrupt_fraction is {limit:.2%}), such as '{corrupt[0].id}': {corrupt[0].reason}; "
            "mend or "
            f"remove them, or raise data.max_corrupt_fraction"
        )

    def _merge(
        self, metric: Metric, seen: int, corrupt: list[CorruptSample], task: Task
    ) -> tuple[Metric, int, list[CorruptSample]]:
        whole, total, all_corrupt = task.metric(), 0, []
        for theirs, count, bad in self._ranks.gather((metric, seen, corrupt)):
            whole.merge(theirs)
            total += count
            all_corrupt.extend(bad)
        return whole, total, all_corrupt

    def _batch_size(self, task: Task) -> int:
        if self._config.eval.batch_size is not None:
            return self._config.eval.batch_size
        return max(1, task.config.batch_size // (self._ranks.world * self._config.train.accumulate))
