"""Arguments and options that several verbs share, and small things they print."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="Name of a recipe, file.py:function, YAML file, or run folder."),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings to change, such as optim.lr=2e-4.", show_default=False
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Everything follows from it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run code outside allsight that a run folder names; only if you know its author."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="best|last|raw|random|FILE",
        help="Which weights; a run folder's best by default.",
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option("--classes", metavar="FILE", help="Class names, one a line; default those of the run."),
]

DataSet = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="Folder, archive or file; format:PATH where several formats fit.",
        show_default=False,
    ),
]
FormatOptions = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Options of the format, such as ignore=11 or classes=[sky,road].",
        show_default=False,
    ),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Default: all cores.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but the result.")]


def print_json(value: Any) -> None:
    """Plain values for programs."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def parsed_options(options: list[str] | None) -> dict[str, Any]:
    """The values of `FormatOptions`, read as YAML; lists become tuples.

    Raises:
        typer.BadParameter: One is not KEY=VALUE.
    """
    import yaml

    parsed = {}
    for option in options or []:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"expected KEY=VALUE, got '{option}'")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed[key] = value
        if isinstance(parsed[key], list):
            parsed[key] = tuple(parsed[key])
    return parsed


def check_folder(folder: Path, option: str = "") -> None:
    """Refuse a folder that cannot be made since a file is in its place, before the work that would fill it.

    Args:
        option: What names it, for the message.
    """
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise typer.BadParameter(
            f"{option}{there}: exists and is not a folder; name another, or move it away"
        )


def check_backend() -> None:
    """Refuse an ALLSIGHT_BACKEND that no operator could follow, before anything is built or trained.

    Raises:
        ConfigError: Unknown name, or not usable on this machine.
    """
    from allsight import ops
    from allsight.config import ConfigError

    try:
        statuses = ops.status()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name, status in statuses.items():
        if status.forced is not None and not status.backends[status.forced].usable:
            raise ConfigError(
                f"environment variable ALLSIGHT_BACKEND: {name} cannot use '{status.forced}' here "
                f"({status.backends[status.forced].why}); unset it or take {status.chosen}"
            )


def metric_lines(metrics: Mapping[str, float]) -> list[str]:
    """`task/metric   value`, aligned."""
    width = max((len(name) for name in metrics), default=0)
    return [f"  {name:<{width}}  {value:.4f}" for name, value in metrics.items()]


def command(*words: object) -> str:
    """A command line that works when copied: this program as it can be called here, quoted where needed."""
    return shlex.join([*program(), *map(str, words)])


def program() -> list[str]:
    """The words that call this program here."""
    called = Path(sys.argv[0])
    found = shutil.which("allsight")
    if found is not None and (called.name != "allsight" or Path(found).resolve() == called.resolve()):
        return ["allsight"]
    if called.name == "allsight" and called.exists():
        return [os.path.relpath(called) if called.is_relative_to(Path.cwd()) else str(called)]
    return [sys.executable, "-m", "allsight.cli"]


class Counter:
    """Says how far something is: on one line of a terminal, else once every few seconds."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._last = time.perf_counter()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if done < total and now - self._last < (0.1 if self._is_terminal else 5.0):
            return
        self._last = now
        end = "\n" if done >= total or not self._is_terminal else ""
        start = "\r" if self._is_terminal else ""
        print(f"{start}{done} of {total} {self.what}", end=end, file=sys.stderr, flush=True)
