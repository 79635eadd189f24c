"""Packages that only some formats need: imported when such a data set is opened."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from allsight.config import ConfigError


def needed_module(name: str, extra: str, format: str) -> Any:
    """A module of an optional dependency.

    Raises:
        ConfigError: It is not installed; names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"data: the format {format!r} needs the package {name.partition('.')[0]} ({error}); "
            f"pip install 'allsight[{extra}]'"
        ) from None
