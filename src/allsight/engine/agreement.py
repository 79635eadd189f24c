"""Whether all ranks of a run are about to do the same: settings, code, versions and data, compared at start.

Ranks of one machine nearly always agree; those of several machines may have another checkout, another copy of
the data, or a command typed differently, and would train something that no single process could repeat.
"""

from __future__ import annotations

import hashlib
import inspect
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from allsight.config import Config, ConfigError, dump
from allsight.data.sampler import Plan
from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks
from allsight.engine.joining import named
from allsight.tasks.base import Reader, Task
from allsight.types import CheckpointError, DataError

_PACKAGE = Path(__file__).parents[1]

MAY_DIFFER = ("data.root", "data.workers", "data.prefetch", "train.threads")
"""Settings of the machine a rank runs on."""

_PACKAGES = ("torch", "numpy", "pillow", "simplejpeg")
_SHOWN = 3
"""Differences that are named; the rest is counted."""
_SECONDS_TO_SPEAK = 0.5


class SharedFault(ConfigError):
    """A fault that all ranks raise alike, so that the first of each machine is enough to say it."""


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Within, what is wrong with the user's settings or data on one rank ends the run on all.

    Else the others would wait for the one that ended, and each would say the same.

    Raises:
        SharedFault: What is wrong, on several ranks; one alone raises its own error.
    """
    fault: Exception | None = None
    try:
        yield
    except (ConfigError, DataError, CheckpointError) as error:
        if ranks.world == 1:
            raise
        fault = error
    if ranks.world == 1:
        return
    found = ranks.gather("" if fault is None else str(fault))
    if any(found):
        holders: dict[str, list[int]] = {}
        for rank, text in enumerate(found):
            holders.setdefault(text, []).append(rank)
        holders.pop("", None)
        everywhere = len(holders) == 1 and all(found)
        lines = [text if everywhere else f"{named(who)}: {text}" for text, who in holders.items()]
        _refuse("\n".join(lines), ranks)


def _refuse(text: str, ranks: Ranks) -> NoReturn:
    if not ranks.is_first:
        # The launcher stops all as soon as one has ended, and the first shall have spoken by then.
        time.sleep(_SECONDS_TO_SPEAK)
    raise SharedFault(text)


def check_same_run(config: RunConfig, ranks: Ranks, *, resume: bool | str) -> None:
    """Refuse to start where ranks have different settings, code or versions.

    Args:
        resume: Whether this rank was told to go on with a run.
    Raises:
        SharedFault: The same line on all ranks: what differs, and on which of them.
    """
    if ranks.world > 1:
        mine = {"--resume": repr(resume), **_settings(config)}
        _compare("settings", mine, ranks, "start all ranks with the same command")
        _compare("versions", _versions(), ranks, "install the same on all machines")
        _compare("code", _code(config), ranks, "bring all machines to the same files")


def check_same_data(tasks: Mapping[str, Task], plan: Plan, ranks: Ranks) -> None:
    """Refuse to start where ranks see different training sets.

    Compared are sizes, streams, classes, tokenizers, and the first and the middle sample of each set.

    Raises:
        SharedFault: The same line on all ranks.
    """
    if ranks.world > 1:
        _compare("data", _data(tasks, plan), ranks, "data.root must lead to the same data on all machines")


def _compare(what: str, mine: Mapping[str, Any], ranks: Ranks, remedy: str) -> None:
    digest = hashlib.sha256(repr(sorted(mine.items())).encode()).hexdigest()
    if len(set(ranks.gather(digest))) == 1:
        return
    # Only now, since these are long.
    found = ranks.gather(dict(mine))
    keys = dict.fromkeys(key for tree in found for key in tree)
    said = [text for key in keys if (text := _difference(key, [tree.get(key) for tree in found]))]
    more = f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    _refuse(f"ranks disagree on {what}: {'; '.join(said[:_SHOWN])}{more}; {remedy}", ranks)


def _difference(key: str, values: list[Any]) -> str:
    """`optim.lr is 0.1 on rank 0 and 0.2 on ranks 1-3`; empty where all are the same."""
    holders: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        holders.setdefault("absent" if value is None else str(value), []).append(rank)
    if len(holders) == 1:
        return ""
    return f"{key} is " + " and ".join(f"{_short(value)} on {named(who)}" for value, who in holders.items())


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}..."


def _settings(config: RunConfig) -> dict[str, str]:
    """`config.PATH` -> value as text, without those of the machine."""
    return {f"config.{path}": repr(value) for path, value in _leaves(dump(config)) if path not in MAY_DIFFER}


def _leaves(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _versions() -> dict[str, str]:
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            # What follows a plus says for which accelerator it was built.
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _code(config: RunConfig) -> dict[str, str]:
    """File -> digest: allsight's own, and those of other classes that the settings name."""
    own = {f"file {name}": digest for name, digest in _own_code().items()}
    files = {inspect.getsourcefile(type(part)) for part in _parts(config)}
    root = str(_PACKAGE)
    others = sorted(file for file in files if file is not None and not file.startswith(root))
    return own | {f"file {Path(file).name}": _digest(Path(file)) for file in others if Path(file).is_file()}


@cache
def _own_code() -> dict[str, str]:
    root = _PACKAGE
    return {f"allsight/{file.relative_to(root)}": _digest(file) for file in sorted(root.rglob("*.py"))}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def _parts(value: Any) -> Iterator[Config]:
    """All settings below one, itself included."""
    if isinstance(value, Config):
        yield value
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name))
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _parts(entry)


def _data(tasks: Mapping[str, Task], plan: Plan) -> dict[str, str]:
    found = {}
    for name, task in tasks.items():
        numbers, path = plan.tasks[name], f"training set of {name}"
        found[f"size of the {path}"] = str(numbers.size)
        found[f"streams of the {path}"] = _of_text(str(numbers.sequences))
        found[f"samples an epoch of the {path}"] = str(numbers.epoch_size)
        found[f"classes of {name}"] = _of_text(str(task.classes))
        if task.tokenizer is not None:
            found[f"tokenizer of {name}"] = task.tokenizer.hash[:12]
        for index in sorted({0, numbers.size // 2}):
            found[f"sample {index} of the {path}"] = _sample(plan.readers[name], index)
    return found


def _sample(reader: Reader, index: int) -> str:
    """Id and digest of what a sample holds; a broken one is broken everywhere."""
    try:
        sample = reader[index]
    except DataError:
        return "unusable"
    digest = hashlib.blake2b(digest_size=6)
    _feed(digest, (sample.inputs, sample.targets))
    return f"{sample.id} ({digest.hexdigest()})"


def _feed(digest: Any, value: Any) -> None:
    """Put all that a value holds into a digest."""
    if isinstance(value, Tensor | np.ndarray):
        values = value.numpy() if isinstance(value, Tensor) else value
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value):
            _feed(digest, (str(name), value[name]))
    elif isinstance(value, list | tuple):
        for entry in value:
            _feed(digest, entry)
    elif is_dataclass(value):
        _feed(digest, [getattr(value, entry.name) for entry in fields(value)])
    elif isinstance(value, str | int | float | None):
        digest.update(repr(value).encode("utf-8", "surrogatepass"))
    else:
        # Other things may print where they lie in memory.
        digest.update(type(value).__qualname__.encode())


def _of_text(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:24]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
