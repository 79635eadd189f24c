"""The run folder: what was run on what, and whether it may be written to."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from allsight import ops
from allsight.config import ConfigError, build, dump, dump_yaml, parse_yaml, replace
from allsight.data.locks import take
from allsight.data.text import Tokenizer
from allsight.engine.agreement import together
from allsight.engine.config import FORMAT, RunConfig, check_format
from allsight.engine.distributed import Ranks
from allsight.engine.resuming import Resume, changes_since
from allsight.tasks.base import Task
from allsight.types import CheckpointError

_LOCK = ".lock"
"""Held by the first rank as long as it trains."""


def open_run_folder(folder: Path, config: RunConfig, *, resume: Resume, ranks: Ranks) -> None:
    """Refuse a folder that holds another run, or, when resuming, none or one of other settings.

    A folder that a killed process had only begun to fill is no run yet, and `if saved` begins there again.

    Raises:
        ConfigError: The same on all ranks.
    """
    problem = ""
    if ranks.is_first:
        has_run = (folder / "resolved.yaml").is_file()
        is_begun = resume == "if saved" and (folder / "environment.json").is_file()
        if resume is True and not has_run:
            problem = f"{folder}: there is no run to resume (no resolved.yaml)"
        elif resume and has_run:
            problem = _other_run(folder, config)
        elif folder.exists() and any(path.name != _LOCK for path in folder.iterdir()) and not is_begun:
            problem = _taken(folder)
    problem = ranks.gather(problem)[0]
    if problem:
        raise ConfigError(problem)


def hold_run_folder(folder: Path | None, *, resume: Resume, ranks: Ranks) -> ExitStack:
    """Keep other runs from training into `folder` until what is returned is closed, or this process ends.

    Two that begin at once have both found it empty; whoever comes second is refused here, before it writes.

    Raises:
        ConfigError: Another process holds it, or has made a run of it meanwhile; said on all ranks.
    """
    hold = ExitStack()
    with together(ranks):
        if folder is not None and ranks.is_first:
            _hold(folder, hold, is_resumed=bool(resume))
    return hold


def _hold(folder: Path, hold: ExitStack, *, is_resumed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    held = hold.enter_context((folder / _LOCK).open("ab"))
    try:
        refused = (
            f"{folder}: another process is training in it; wait for it, stop it, or choose another --name"
        )
        # The process's own: a notebook may resume what it has interrupted.
        take(held, refused, lock=fcntl.lockf)
        if not is_resumed and (folder / "resolved.yaml").is_file():
            raise ConfigError(_taken(folder))
    except BaseException:
        hold.close()
        raise


def _taken(folder: Path) -> str:
    return f"{folder}: a run of this name exists; resume it with --resume or choose another --name"


def _other_run(folder: Path, config: RunConfig) -> str:
    """What keeps the run in `folder` from going on with `config`; empty if nothing does."""
    try:
        saved = _saved_tree(folder)
        now = dump(config)
        # A field that this version has and the one that wrote the run had not holds its default.
        changes_since(saved, _known_to(saved, now))
    except ConfigError as error:
        return str(error)
    return ""


def _known_to(saved: Any, now: Any) -> Any:
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        return now
    return {key: _known_to(saved.get(key), value) for key, value in now.items() if key in saved}


def create_run_folder(
    folder: Path,
    config: RunConfig,
    tasks: Mapping[str, Task],
    tokenizer: Tokenizer | None,
    parameters: Sequence[Mapping[str, Any]],
    command: Sequence[str],
) -> None:
    """Write `resolved.yaml`, `environment.json`, `classes.json`, `parameters.json` (the optimiser's groups).

    Where tasks have texts, also `tokenizer.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "environment.json", json.dumps(environment(command), indent=1) + "\n")
    names = {name: list(task.classes) for name, task in tasks.items()}
    write_text(folder / "classes.json", json.dumps(names, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "parameters.json", json.dumps(parameters, indent=1) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)
    if config.data.root:
        # A later command may start from another folder.
        config = replace(config, {"data.root": str(Path(config.data.root).expanduser().absolute())})
    # Last, since it is what makes a folder a run.
    write_text(folder / "resolved.yaml", f"format: {FORMAT}\n{dump_yaml(dump(config))}")


def read_run_config(folder: Path, *, trust: bool = False) -> RunConfig:
    """The configuration of a saved run.

    Raises:
        ConfigError: Not a run folder, written by a newer allsight, or it needs code that is not trusted.
    """
    tree = _saved_tree(folder)
    return build(RunConfig, tree, path=f"{folder / 'resolved.yaml'}: config", trust=trust)


def _saved_tree(folder: Path) -> dict[str, Any]:
    file = folder / "resolved.yaml"
    if not file.is_file():
        raise ConfigError(f"{folder}: not a run folder (it has no resolved.yaml)")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; the run folder is damaged") from error
    return check_format(parse_yaml(text, where=str(file)), where=str(file))


def read_classes(folder: Path) -> dict[str, tuple[str, ...]]:
    """Class names per task, as the run saved them; empty where it did not.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = folder / "classes.json"
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        return {task: tuple(str(name) for name in names) for task, names in tree.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: expected {{task: [class, ...]}} as the run wrote it ({error}); mend or remove it, "
            f"answers then name classes by number"
        ) from error


def environment(command: Sequence[str]) -> dict[str, Any]:
    """What a run ran on."""
    return {
        "allsight": version("allsight"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "command": list(command) or sys.argv,
        "git": _git_hash(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "ops": {name: {"backend": s.chosen, "reason": s.why} for name, s in ops.status().items()},
    }


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def _git_hash() -> str:
    """The commit of allsight's own code, "-dirty" where files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    known = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
    describe = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (known, describe):
            found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
            if found.returncode:
                return ""
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
