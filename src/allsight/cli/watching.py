"""`allsight watch`: how a run goes, seen from another terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from allsight.cli.words import Run


def watch(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="Show how it stands and end.")] = False,
) -> None:
    """Show how a run goes: live until it ends, or once. Ctrl-C stops the watching, not the run.

    \b
    allsight watch runs/joint_world
    allsight watch runs/joint_world --once

    A run that has not begun is waited for. Exit status 1 if the run failed (--once: or stopped early).
    """
    from allsight.view import watch_run

    raise typer.Exit(watch_run(run, once=once))
