"""`allsight config`, `allsight report` and `allsight doctor`: nothing is changed, only shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allsight.cli.words import Changes, Json, Run, Trust, command, print_json

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig


def config(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Name of a recipe, file.py:function, YAML file, or run folder.",
            show_default=False,
        ),
    ] = None,
    changes: Changes = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    parameters: Annotated[
        bool,
        typer.Option("--parameters", help="Print which parameters get which learning rate and decay."),
    ] = False,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Print a recipe as YAML, with every setting; lines that key=value changes are marked.

    \b
    allsight config --list
    allsight config internimage_micro_tiny20 optim.lr=1e-3
    allsight config runs/joint_world > again.yaml
    allsight config internimage_h_in1k_640_layer_decay --parameters

    The YAML can be passed wherever a recipe is.
    """
    if list_all:
        if recipe is not None:
            raise typer.BadParameter(f"--list lists all recipes; leave out '{recipe}'")
        _list(as_json)
        return
    if recipe is None:
        raise typer.BadParameter("name a recipe, or --list to see them")
    from allsight.config import apply_overrides, changed_lines, dump
    from allsight.recipes import find_config

    found, _ = find_config(recipe, trust=trust)
    base = dump(found)
    changed = apply_overrides(found, changes or [])
    tree = dump(changed)
    if parameters:
        _parameters(changed, as_json)
    elif as_json:
        print_json(tree)
    else:
        sys.stdout.write(changed_lines(tree, base))


def _parameters(config: RunConfig, as_json: bool) -> None:
    import torch

    from allsight.engine.parameter_groups import parameter_table
    from allsight.models import model_for_tasks
    from allsight.tasks import build_tasks

    tasks = build_tasks(config.tasks, config.data.folder())
    # Only names and shapes are asked for, also of networks that would not fit into memory.
    with torch.device("meta"):
        table = parameter_table(model_for_tasks(config.model, tasks), config.optim)
    if as_json:
        print_json(table.to_json())
    else:
        print(table)


def _list(as_json: bool) -> None:
    from allsight.recipes import names, summary

    if as_json:
        print_json({name: summary(name) for name in names()})
        return
    width = max(map(len, names()))
    for name in names():
        print(f"{name:<{width}}  {summary(name)}")


def report(
    run: Run,
    compare: Annotated[
        list[Path] | None,
        typer.Option("--compare", metavar="RUN", help="Further runs to set beside it (may be repeated)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: RUN/report.html.")
    ] = None,
) -> None:
    """Write one self-contained HTML file: what ran on what, curves, pictures, speed, warnings.

    \b
    allsight report runs/joint_world
    allsight report runs/joint_tiny20_camvid --compare runs/tiny20_alone --compare runs/camvid_alone
    """
    from allsight.view import write_report

    print(write_report(run, compare=compare or [], out=out))


def doctor(
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", help="Data root to look at; default $ALLSIGHT_DATA."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run folders lie.")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """Say what this machine can do: versions, devices, operators, extras, disk, speed of loading.

    \b
    allsight doctor
    allsight doctor --json
    """
    from allsight import ops
    from allsight.config import ConfigError
    from allsight.launch.doctor import examine

    # A wish that cannot be served is a finding here; a name that does not exist is a mistake.
    try:
        ops.current_backend()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    findings = examine(runs=runs, root=root)
    if as_json:
        print_json({section: {f.name: f.to_json() for f in found} for section, found in findings.items()})
        return
    width = max(len(f.name) for found in findings.values() for f in found)
    for section, found in findings.items():
        print(section)
        for finding in found:
            print(f"{'  ' if finding.ok else '! '}{finding.name:<{width}}  {finding.text}")
    print(f"next: {command('demo')}")
