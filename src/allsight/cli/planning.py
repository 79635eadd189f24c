"""`allsight plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from allsight.cli.words import Changes, Json, Recipe, Trust, parsed_options, print_json

if TYPE_CHECKING:
    from allsight.launch.plan import Choice, Plan
    from allsight.launch.plan.search import Tried


def plan(
    recipe: Recipe,
    changes: Changes = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Devices in all.")] = 8,
    kind: Annotated[str, typer.Option("--kind", help="Which devices, such as a100-80g.")] = "h100-80g",
    samples: Annotated[
        list[str] | None,
        typer.Option("--samples", metavar="TASK=N", help="Size of a training set that is not here."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Try every kind of recomputation too; the best one is shown.")
    ] = False,
    deepspeed: Annotated[
        bool, typer.Option("--deepspeed", help="Print the settings DeepSpeed would get, and nothing else.")
    ] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Say what a run would take: memory for each strategy, time of a step, length of the schedule.

    \b
    allsight plan internimage_h_in1k_640 --gpus 64 --kind h100-80g
    allsight plan my_recipes.py:giant parallel.fsdp.gather_half=true --gpus 1024 --samples joint=427000000
    allsight plan internimage_h_in1k_640 --gpus 64 --search

    Nothing is trained and no weights are made, so it works for models that fit on no machine here.
    """
    from allsight.config import apply_overrides
    from allsight.engine.parallel.deepspeed import deepspeed_settings
    from allsight.launch.plan import plan_run
    from allsight.launch.plan.search import search_plans
    from allsight.recipes import find_config

    config = apply_overrides(find_config(recipe, trust=trust)[0], changes or [])
    if deepspeed:
        print_json(deepspeed_settings(config, gpus))
        return
    sizes = parsed_options(samples)
    for name, size in sizes.items():
        if name not in config.tasks or not isinstance(size, int) or size < 1:
            raise typer.BadParameter(
                f"--samples {name}={size}: expected TASK=N, N >= 1, with a task of {', '.join(config.tasks)}"
            )
    if search:
        tried = search_plans(config, gpus=gpus, kind=kind, samples=sizes)
        if as_json:
            print_json([{"changes": list(each.changes), **each.plan.to_json()} for each in tried])
            return
        print("\n".join([*_tried_lines(tried), *_lines(tried[0].plan, tried[0].changes, name=config.name)]))
        return
    found = plan_run(config, gpus=gpus, kind=kind, samples=sizes)
    if as_json:
        print_json(found.to_json())
    else:
        print("\n".join(_lines(found, (), name=config.name)))


def _tried_lines(tried: Sequence[Tried]) -> list[str]:
    """One line for each kind of recomputation, the best first."""
    rows = [["recomputation", "best strategy", "micro-batches", "peak GiB", "step s"]]
    for each in tried:
        words = " ".join(each.changes) or "the model has no such setting"
        best = each.plan.best
        if best is None:
            smallest = min(each.plan.choices, key=lambda choice: choice.peak)
            rows.append([words, "nothing fits", "", f"{smallest.peak / 2**30:.2f}", ""])
            continue
        micro = "/".join(map(str, best.micro_batch.values()))
        peak, step = f"{best.peak / 2**30:.2f}", f"{best.step_s:.3f}"
        rows.append([words, best.strategy, f"{best.accumulate} x {micro}", peak, step])
    return ["tried:", *_columns(rows, left=2), "the best of them:"]


def _columns(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Rows of a table; the first `left` columns are flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(["", *cells]))
    return lines


def _lines(plan: Plan, changes: Sequence[str], *, name: str) -> list[str]:
    sizes = plan.sizes
    lines = [
        f"{name} on {plan.gpus} x {plan.kind}",
        f"{sizes.parameters / 1e6:,.1f} M parameters, {sizes.trained / 1e6:,.1f} M of them trained; "
        f"{plan.flops_per_step / 1e12:,.1f} TFLOP a step",
    ]
    for task, cost in plan.tasks.items():
        lines.append(
            f"task {task}: batch {cost.batch_size:,}, {cost.row_bytes / 2**20:,.0f} MiB of activations and "
            f"{cost.row_flops / 1e9:,.0f} GFLOP a row (shapes of {cost.made_from})"
        )
    head = ["strategy", "micro-batches", "weights", "gradients", "optimiser", "average", "gathered"]
    rows = [[*head, "activations", "update", "peak GiB", "fits", "step s"]]
    rows += [_row(choice) for choice in plan.choices]
    lines += ["GiB on each device:", *_columns(rows, left=1)]
    if plan.best is None:
        lines.append("nothing fits: shard over more devices, recompute (remat), or take smaller pictures")
        return lines
    best = plan.best
    of = ", ".join(f"{rows} of {task}" for task, rows in best.micro_batch.items())
    lines.append(
        f"recommended: {' '.join([*changes, f'parallel.strategy={best.strategy}'])} "
        f"train.accumulate={best.accumulate} (micro-batches of {of})"
    )
    lines.append(
        f"a step: {best.compute_s:.3f} s computing, {best.communication_s:.3f} s sending, {best.step_s:.3f} s"
    )
    if plan.seconds is None:
        lines.append("length of the schedule: unknown without the size of the data; say --samples TASK=N")
    else:
        hours = plan.seconds / 3600
        total = f"{hours:,.1f} h, {hours * plan.gpus:,.0f} device hours"
        lines.append(f"length of the schedule: {plan.steps:,} steps, {total}")
    return lines


def _row(choice: Choice) -> list[str]:
    held = choice.held
    state = (held.parameters, held.gradients, held.optimiser, held.average, held.gathered)
    sizes = (*state, choice.activations, held.update)
    micro = "/".join(str(rows) for rows in choice.micro_batch.values())
    return [
        choice.strategy,
        f"{choice.accumulate} x {micro}",
        *(f"{size / 2**30:.2f}" for size in sizes),
        f"{choice.peak / 2**30:.2f}",
        "yes" if choice.fits else "no",
        f"{choice.step_s:.3f}",
    ]
