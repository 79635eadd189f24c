"""Probes of a run while it goes on: what its settings ask for, on its tasks or other data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from allsight.config import ConfigError
from allsight.data.text import Tokenizer
from allsight.engine.config import ProbeConfig, RunConfig
from allsight.engine.distributed import Ranks
from allsight.models.base import TaskModel
from allsight.tasks.base import Task

if TYPE_CHECKING:
    from allsight.engine.probing import ProbeScore


class Looks:
    """The probes of a run, made ready once.

    Args:
        config: The run.
        tasks: Its tasks.
        tokenizer: Theirs, for classes by their names.
    Raises:
        ConfigError: A probe without pictures that have classes, or without a tokenizer where it needs one.
    """

    def __init__(
        self, config: RunConfig, tasks: Mapping[str, Task], tokenizer: Tokenizer | None, ranks: Ranks
    ) -> None:
        self._config, self._tokenizer, self._ranks = config, tokenizer, ranks
        self._asked = [
            (settings, task)
            for number, settings in enumerate(config.eval.probes)
            for task in _tasks_of(settings, tasks, f"config.eval.probes[{number}]")
        ]
        kinds = [settings.kind for settings in config.eval.probes]
        if "zero_shot" in kinds and tokenizer is None:
            raise ConfigError(
                f"config.eval.probes[{kinds.index('zero_shot')}]: zero_shot reads the names of classes, and "
                "no task of the run has a tokenizer"
            )

    def __call__(self, model: TaskModel) -> Iterator[tuple[ProbeScore, str]]:
        """What each probe finds, and what it was, in words. All ranks call this."""
        if not self._asked:
            return
        # Only runs that ask for probes load them.
        from allsight.engine.probing import Extraction, probe, zero_shot
        from allsight.models.features import backbone_of

        for settings, task in self._asked:
            how = Extraction(
                self._ranks.device,
                self._config.precision,
                max_train=settings.max_train,
                max_val=settings.max_val,
                max_corrupt_fraction=self._config.data.max_corrupt_fraction,
                ranks=self._ranks,
            )
            if settings.kind == "zero_shot":
                assert self._tokenizer is not None
                score = zero_shot(model, task, self._tokenizer, how=how)
            else:
                score = probe(backbone_of(model), task, settings.kind, how=how)
            yield score, f"{settings.kind} on {task.config.data}"


def _tasks_of(settings: ProbeConfig, tasks: Mapping[str, Task], path: str) -> list[Task]:
    found = [task.for_probes(settings.data) for task in tasks.values()]
    own = [task for task in found if task is not None]
    if settings.data:
        own = own[:1]
    own = [task for task in own if task.classes]
    if not own:
        raise ConfigError(
            f"{path}: no task of the run has pictures with classes; set its data, such as "
            "imagefolder:tiny_imagenet20"
        )
    return own
