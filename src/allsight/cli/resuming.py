"""Which configuration and folder a `train` command means, for a new run and for one to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from allsight.config import ConfigError, apply_overrides, dump, replace
from allsight.recipes import find_config

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig

MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.prefetch",
    "data.max_corrupt_fraction",
    "train.threads",
    "train.accumulate",
    "train.max_skipped_in_a_row",
    "eval",
    "checkpoint",
    "parallel",
)
"""Settings a resumed run may change: where data lies, how work is spread, what is watched and kept. All
others decide which weights come out, and half a run of each would be a run nobody can repeat."""


def config_to_start(
    recipe: str, changes: list[str], *, name: str | None, runs: Path, trust: bool
) -> tuple[Path, RunConfig]:
    """Folder and configuration of a new run.

    Raises:
        ConfigError: Unknown recipe, wrong setting, or the run exists.
    """
    config, _ = find_config(recipe, trust=trust)
    config = apply_overrides(config, changes)
    if name is not None:
        config = replace(config, {"name": name})
    folder = runs / config.name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: a run of this name exists; go on with it by --resume, or choose another --name"
        )
    return folder, config


def config_to_resume(
    recipe: str, changes: list[str], *, name: str | None, runs: Path, trust: bool
) -> tuple[Path, RunConfig, list[str]]:
    """Folder and configuration of a run to go on with, and what differs from when it was started.

    Args:
        recipe: The run folder, or what the run was started with (then the folder follows from the name).
    Raises:
        ConfigError: No such run, or a setting is different that must not be.
    """
    from allsight.engine.run_folder import read_run_config

    if Path(recipe).is_dir():
        if name is not None:
            raise ConfigError(f"--name {name}: a run keeps its name; leave it out with --resume")
        folder = Path(recipe)
        saved = read_run_config(folder, trust=trust)
        wanted = apply_overrides(saved, changes)
    else:
        wanted = apply_overrides(find_config(recipe, trust=trust)[0], changes)
        folder = runs / (name or wanted.name)
        wanted = replace(wanted, {"name": folder.name})
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such run to resume; leave out --resume to start it")
        # Code that the user's own recipe names is loaded by now, and loaded code needs no trust.
        saved = read_run_config(folder, trust=trust)
    notes = []
    for path, (before, now) in differences(dump(saved), dump(wanted)).items():
        if not path.startswith(tuple(f"{allowed}." for allowed in MAY_CHANGE)) and path not in MAY_CHANGE:
            raise ConfigError(
                f"config.{path}: the run was started with {before!r}, now {now!r}; a resumed run may change "
                f"only {', '.join(MAY_CHANGE)}; for anything else start a new run with another --name"
            )
        notes.append(f"resumed with {path}={now} (was {before})")
    return folder, wanted, notes


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
