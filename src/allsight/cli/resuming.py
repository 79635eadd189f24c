"""Which configuration and folder a `train` command means, for a new run and for one to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from allsight.config import ConfigError, apply_overrides, dump, replace
from allsight.recipes import find_config

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig
    from allsight.engine.resuming import Resume


def config_for(
    recipe: str,
    changes: list[str],
    *,
    resume: Resume,
    name: str | None,
    runs: Path,
    trust: bool,
    is_looked_at: bool = True,
) -> tuple[Path, RunConfig, list[str]]:
    """Folder and configuration of the run that a command means, and what differs from when it was started.

    Args:
        resume: As the trainer's.
        is_looked_at: Whether a folder that exists already is refused here; the ranks do so anyway.
    Raises:
        ConfigError: As `config_to_start` and `config_to_resume`.
    """
    if resume is True or (resume and Path(recipe).is_dir()):
        return config_to_resume(recipe, changes, name=name, runs=runs, trust=trust)
    may_exist = bool(resume) or not is_looked_at
    folder, config = config_to_start(recipe, changes, name=name, runs=runs, trust=trust, may_exist=may_exist)
    if resume and (folder / "resolved.yaml").is_file():
        return config_to_resume(recipe, changes, name=name, runs=runs, trust=trust)
    return folder, config, []


def config_to_start(
    recipe: str, changes: list[str], *, name: str | None, runs: Path, trust: bool, may_exist: bool = False
) -> tuple[Path, RunConfig]:
    """Folder and configuration of a new run.

    Args:
        may_exist: Leave it to the engine to refuse a folder that is not empty.
    Raises:
        ConfigError: Unknown recipe, wrong setting, or the run exists.
    """
    config, _ = find_config(recipe, trust=trust)
    config = apply_overrides(config, changes)
    if name is not None:
        config = replace(config, {"name": name})
    folder = runs / config.name
    if not may_exist and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
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
    from allsight.engine.resuming import changes_since
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
        is_chosen = any(change.startswith("parallel.strategy=") for change in changes)
        if wanted.parallel.strategy == "single" and not is_chosen:
            # It was chosen by nobody, or when the run was started.
            wanted = replace(wanted, {"parallel.strategy": saved.parallel.strategy})
    changed = changes_since(dump(saved), dump(wanted))
    notes = [f"resumed with {path}={now} (was {before})" for path, (before, now) in changed.items()]
    return folder, wanted, notes
