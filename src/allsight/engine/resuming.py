"""From where a run goes on, and what may differ between it and its continuation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from allsight.config import ConfigError
from allsight.engine.checkpoint import newest_whole
from allsight.engine.distributed import Ranks
from allsight.types import CheckpointError

Resume = bool | Literal["if saved"]
"""Go on with a run, begin one, or (for commands that are run again and again) go on if something is saved and
begin otherwise."""

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


@dataclass(frozen=True)
class Beginning:
    """Where a run starts.

    Args:
        path: Checkpoint to go on from; None begins anew.
        notes: What is wrong with newer checkpoints.
    """

    path: Path | None = None
    notes: tuple[str, ...] = ()


def find_beginning(folder: Path | None, resume: Resume, ranks: Ranks) -> Beginning:
    """Where a run starts, the same on all ranks.

    Raises:
        CheckpointError: It is to go on, and there is no whole checkpoint.
    """
    if folder is None or not resume:
        return Beginning()
    notes: list[str] = []
    found = newest_whole(folder / "checkpoints", tell=notes.append) if ranks.is_first else None
    beginning = ranks.gather(Beginning(found.path if found else None, tuple(notes)))[0]
    if beginning.path is None and resume is True:
        reason = f" ({beginning.notes[0]})" if beginning.notes else ""
        raise CheckpointError(f"{folder}: no whole checkpoint to resume from{reason}; start a new run")
    return beginning


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
