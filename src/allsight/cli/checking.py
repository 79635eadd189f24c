"""`allsight check-task`: does a task of one's own keep what every task promises?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allsight.cli.words import Changes, Json, print_json

if TYPE_CHECKING:
    from allsight.config import Config


def check_task(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="file.py:Class, module:Class, or a name such as classification."),
    ],
    changes: Changes = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", help="Data root; default $ALLSIGHT_DATA.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a task keeps what every task promises, on its own data. Exit status 1 if it does not.

    \b
    allsight check-task my_tasks.py:Counting data=coco:coco_small
    allsight check-task classification data=imagefolder:pets size_px=64

    KEY=VALUE changes the task's settings. Runs the task's code, reads a few dozen samples, trains nothing.
    """
    from allsight.tasks import TASKS
    from allsight.tasks.checking import check_task as check

    owner: Any = TASKS.find(task, path="TASK", trust=True)
    data_root = root or (Path(os.environ["ALLSIGHT_DATA"]) if os.environ.get("ALLSIGHT_DATA") else None)
    built = _config(owner.Config, changes or []).build(name="checked", root=data_root)
    findings = []
    for finding in check(built):
        findings.append(finding)
        if not as_json:
            print(finding, flush=True)
    faults = sum(bool(finding.problem) for finding in findings)
    skipped = sum(bool(finding.skipped) for finding in findings)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        kept = len(findings) - faults - skipped
        print(f"{task}: {kept} promises kept, {faults} broken, {skipped} not checked")
    if faults:
        raise typer.Exit(1)


def _config(kind: type[Config], changes: list[str]) -> Config:
    """The task's settings; those without a default must be among the changes."""
    from allsight.config import apply_overrides
    from allsight.config.text import parse_value

    given = {name: value for name, _, value in (change.partition("=") for change in changes)}
    required = [name for name, field in kind.model_fields.items() if field.is_required() and name in given]
    return apply_overrides(kind(**{name: parse_value(given[name]) for name in required}), changes)
