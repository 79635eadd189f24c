"""What may differ between a run and its continuation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allsight.config import ConfigError

MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.prefetch",
    "data.max_corrupt_fraction",
    "train.threads",
    "train.accumulate",
    "train.recover_memory",
    "train.max_skipped_in_a_row",
    "train.norms_every",
    "eval",
    "checkpoint",
    "parallel",
    "profile",
)
"""Settings a resumed run may change: where data lies, how work is spread, what is watched and kept. All
others decide which weights come out, and half a run of each would be a run nobody can repeat."""


def changes_since(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (value then, value now) of the settings that were changed, if all of them may be.

    Args:
        saved: The run's configuration as a plain tree, as `resolved.yaml` holds it.
        now: The one it is to go on with.
    Raises:
        ConfigError: A setting differs that decides which weights come out.
    """
    found = differences(saved, now)
    for path, (before, after) in found.items():
        if not path.startswith(tuple(f"{allowed}." for allowed in MAY_CHANGE)) and path not in MAY_CHANGE:
            raise ConfigError(
                f"config.{path}: the run was started with {before!r}, now {after!r}; a resumed run may "
                "change "
                f"only {', '.join(MAY_CHANGE)}; for anything else start a new run with another --name"
            )
    return found


def differences(before: Any, now: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (value before, value now), for all values of two trees that differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return {} if before == now else {path: (before, now)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*before, *(key for key in now if key not in before)]:
        found |= differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    if not found and list(before) != list(now):
        found[path] = (list(before), list(now))
    return found
