"""What tasks with classes do with their settings: whence the classes, how many, with which weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from allsight.config import ConfigError
from allsight.types import DataError


def find_classes(
    given: tuple[str, ...], of_data: Callable[[], tuple[str, ...]], *, data: str, may_lack: bool
) -> tuple[str, ...]:
    """Class names: those given, else those of the data set, else none.

    Args:
        given: Names that came with the weights, the run or the settings.
        of_data: Opens the data set and returns its names.
        data: The task's `data`; empty: there is no data set.
        may_lack: The number of classes is known otherwise, so that a missing data set is no error (answers
            then say `class 281`).
    Raises:
        ConfigError, DataError: The data set cannot be opened and nothing else tells the classes.
    """
    if given or not data:
        return given
    try:
        return of_data()
    except (ConfigError, DataError):
        if not may_lack:
            raise
        return ()


def count_classes(num_classes: int | None, names: tuple[str, ...], *, task: str, data: str) -> int:
    """The number of classes, if settings and names agree.

    Raises:
        ConfigError: Nothing says how many there are, or there are more names than `num_classes`.
    """
    where = f"config.tasks.{task}.num_classes"
    if num_classes is None:
        if not names:
            raise ConfigError(f"{where}: required, since nothing names the classes (data '{data}')")
        return len(names)
    if len(names) > num_classes:
        raise ConfigError(f"{where}: {num_classes}, but '{data}' has {len(names)} classes; leave it out")
    return num_classes


def check_class_weights(weights: Sequence[float], num_classes: int | None) -> None:
    """Refuse weights that make no loss.

    Raises:
        ConfigError: Negative, all zero, or not one for each of `num_classes` (None: not known yet).
    """
    if not weights or min(weights) < 0 or max(weights) <= 0:
        raise ConfigError(f"class_weights: expected numbers of 0 or more, not all 0, got {tuple(weights)}")
    if num_classes is not None and len(weights) != num_classes:
        raise ConfigError(f"class_weights: {len(weights)} numbers for {num_classes} classes")


def given_options(**options: Any) -> dict[str, Any]:
    """Those reader options that were set; the rest is not passed on, since not every format knows it."""
    return {name: value for name, value in options.items() if value not in (None, "", ())}


def training_ids(prefixes: tuple[str, ...], split: str) -> tuple[str, ...]:
    """Prefixes of names as prefixes of ids `SPLIT/NAME`, so that evaluation stays what it is."""
    return tuple(f"{split}/{prefix}" for prefix in prefixes)
