"""A batch like those of a task, from its data if they are there and from a made-up picture if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from allsight.config import ConfigError
from allsight.tasks.base import Task
from allsight.types import Batch, DataError, Sample

_SIDE_PX = 256


def example_batch(task: Task, rows: int) -> tuple[Batch, str]:
    """A training batch, and what it was made from.

    Raises:
        ConfigError: The data are not there, and the task needs more than pictures with a class.
    """
    try:
        reader = task.reader("train")
        sample, said = reader[0], f"a sample of {task.config.data}"
    except (ConfigError, DataError, OSError) as error:
        picture = torch.zeros(3, _SIDE_PX, _SIDE_PX, dtype=torch.uint8)
        sample, said = Sample.of_image("made-up", picture, {"label": 0}), "a made-up picture"
        reason = error
    else:
        reason = None
    try:
        rng = np.random.default_rng(0)
        transform = task.transform("train")
        batch = task.collate([transform(sample, rng) for _ in range(rows)])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"plan: task '{task.name}' needs its data for an example of a batch: {reason or error}"
        ) from error
    return replace(batch, task=task.name), said


def data_size(task: Task, given: Mapping[str, Any]) -> int | None:
    """Samples of an epoch; None where the data are not there and nobody said."""
    if task.name in given:
        return int(given[task.name])
    try:
        return len(task.reader("train"))
    except (ConfigError, DataError, OSError):
        return None
