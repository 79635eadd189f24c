"""Which errors are the user's to mend, and how they are said."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from allsight.config.errors import ConfigError, did_you_mean
from allsight.types.errors import CheckpointError, DataError

# Typer keeps its own copy of click from 0.16 on, so the class is taken from where it surely is.
_UsageError: Any = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class Fault:
    """An exit status and what to say, one line a fault; nothing where another rank says it."""

    status: int
    text: str


_AFTER_A_FULL_DISK = {
    "train": "go on with the same words and --resume-or-start",
    "data pack": "run the command again: whole shards are kept",
}
"""Verb -> what to do when there is space again; other verbs leave nothing half-made and begin anew."""


def fault_of(error: Exception, words: Sequence[str]) -> Fault | None:
    """What to tell the user about `error` of the command `words`; None where it is a bug of ours."""
    if isinstance(error, _UsageError):
        return Fault(2, _usage(error))
    if isinstance(error, typer.Abort):
        return Fault(130, "interrupted")
    if _is_a(error, "allsight.engine.agreement", "SharedFault"):
        return Fault(2, str(error) if os.environ.get("LOCAL_RANK", "0") == "0" else "")
    if isinstance(error, ConfigError | DataError | CheckpointError):
        return Fault(2, _of_rank(str(error)))
    if _is_a(error, "allsight.engine.trainer", "RunStopped"):
        from allsight.launch.run import STOPPED, is_first

        return Fault(STOPPED, str(error) if is_first() else "")
    for module, name in (
        ("allsight.data.shards.stores", "RemoteError"),
        ("allsight.data.side_by_side", "ProcessDied"),
        ("allsight.engine.joining", "RanksMissing"),
        ("allsight.engine.trainer", "RunFailed"),
    ):
        if _is_a(error, module, name):
            return Fault(1, _of_rank(str(error)))
    if isinstance(error, OSError):
        return _of_system(error, words)
    return None


def _is_a(error: Exception, module: str, name: str) -> bool:
    """Whether an error is of a class that only a process which loaded its module can have raised.

    Asking for the class itself would load torch.
    """
    return isinstance(error, getattr(sys.modules.get(module), name, ()))


def _of_system(error: OSError, words: Sequence[str]) -> Fault | None:
    if error.errno == errno.ENOSPC:
        verbs = (" ".join(words[:count]) for count in (1, 2))
        remedy = next(filter(None, map(_AFTER_A_FULL_DISK.get, verbs)), "run the command again")
        return Fault(1, _of_rank(f"{error.filename or 'disk'}: no space left; free some and {remedy}"))
    if isinstance(error, FileExistsError) and error.filename is not None:
        return Fault(
            2, _of_rank(f"{error.filename}: exists and is not a folder; name another, or move it away")
        )
    mendable = FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError
    if isinstance(error, mendable) and error.filename is not None:
        said = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
        return Fault(2, _of_rank(f"{error.filename}: {said}"))
    return None


def _of_rank(text: str) -> str:
    """Ranks after the first say who they are, since several speak at once."""
    rank = os.environ.get("RANK", "0")
    return text if rank == "0" else "\n".join(f"rank {rank}: {line}" for line in text.split("\n"))


def _usage(error: Any) -> str:
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.format_message()
    context = error.ctx
    text = " ".join(error.format_message().split()).rstrip(".")
    if context is None:
        return text
    commands = getattr(context.command, "commands", {})
    wrong = next(iter(context.args), "") or text.partition("'")[2].partition("'")[0]
    if commands and "No such command" in text:
        return f"no command '{wrong}'{did_you_mean(wrong, commands)}"
    return f"{text}; see {context.command_path} --help"
