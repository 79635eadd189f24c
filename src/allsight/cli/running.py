"""`allsight train`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allsight.cli.words import Changes, Recipe, Trust, check_backend, command, metric_lines

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig
    from allsight.engine.trainer import Trainer


def train(
    recipe: Recipe,
    changes: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint of the run folder.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run folder; default the recipe's.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run folders lie.")] = Path(
        "runs"
    ),
    trust: Trust = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Start so many ranks on this machine.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Start one rank for each of so many GPUs.")
    ] = None,
) -> None:
    """Train a recipe in a new run folder, or go on with a run.

    \b
    allsight train joint_world data.root=world
    allsight train internimage_micro_tiny20 optim.lr=1e-3 schedule.epochs=4 --name quick
    allsight train my_recipes.py:generalist --processes 2
    allsight train runs/quick --resume

    With --resume only settings that leave the course of training as it is may change: data.root,
    data.workers, data.prefetch, data.max_corrupt_fraction, train.threads, train.accumulate,
    train.recover_memory, train.max_skipped_in_a_row, train.norms_every, eval, checkpoint, parallel, profile.
    """
    from allsight.cli.resuming import config_to_resume, config_to_start
    from allsight.config import ConfigError
    from allsight.launch.run import in_group, is_first, run_ranks, with_strategy

    ranks = _ranks(processes, gpus)
    words = ["train", recipe, *(changes or []), "--runs", str(runs)]
    words += [] if name is None else ["--name", name]
    words += [
        flag for flag, is_set in (("--resume", resume), ("--trust", trust), ("--quiet", quiet)) if is_set
    ]
    strategy_is_given = any(change.startswith("parallel.strategy=") for change in changes or [])
    if resume:
        folder, config, notes = config_to_resume(recipe, changes or [], name=name, runs=runs, trust=trust)
    else:
        folder, config = config_to_start(recipe, changes or [], name=name, runs=runs, trust=trust)
        notes = []
    if ranks is not None and not in_group():
        if ranks > 1 and strategy_is_given and config.parallel.strategy == "single":
            raise ConfigError(
                f"config.parallel.strategy: 'single' uses one process, not {ranks}; leave it out or set ddp"
            )
        status = run_ranks(words, ranks)
        if status:
            raise typer.Exit(status)
        return
    config = with_strategy(config, set_by_user=strategy_is_given)
    metrics = train_with_progress(config, folder, resume=resume, quiet=quiet, notes=notes, words=words)
    if is_first():
        print_results(metrics, folder)
        print("\n".join(["next:", *(f"  {line}" for line in _what_next(folder))]))


def train_with_progress(
    config: RunConfig,
    folder: Path,
    *,
    words: Sequence[str],
    resume: bool = False,
    quiet: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, float]:
    """Train to the end with progress on the terminal; the metrics.

    Args:
        words: What the user typed after `allsight`, for the run's record.
        notes: What else to write down at the start.
    Raises:
        RunFailed: The run stopped itself, or its last checkpoint could not be written.
    """
    from allsight.engine.checkpoint import newest_whole
    from allsight.engine.trainer import RunFailed, Trainer
    from allsight.view import Progress

    check_backend()
    trainer = Trainer(config, folder=folder, resume=resume, command=["allsight", *words])
    for note in notes:
        trainer.events.write("note", trainer.step, text=note)
    try:
        silent = quiet or not trainer.ranks.is_first
        with Progress(steps=trainer.steps, tasks=list(trainer.tasks), silent=silent) as progress:
            trainer.listeners.append(progress)
            metrics = trainer.fit()
        if trainer.saved_step != trainer.step:
            raise RunFailed(_lost(trainer, folder))
    except KeyboardInterrupt:
        saved = newest_whole(folder / "checkpoints")
        go_on = f"go on with: {command('train', folder, '--resume')}" if saved else "nothing was saved yet"
        print(f"stopped at step {trainer.step}; {go_on}", file=sys.stderr)
        raise
    finally:
        trainer.close()
    return metrics


def _lost(trainer: Trainer, folder: Path) -> str:
    """That the end of a run is not on disk, and what to do about it."""
    text = f"{folder}: trained to step {trainer.step}, but its checkpoint could not be written"
    if trainer.saved_step is None:
        return f"{text}, nor any before it (see the alarms in events.jsonl); mend that and start again"
    return (
        f"{text}; the newest is of step {trainer.saved_step} (see the alarms in events.jsonl); mend that, "
        f"then go on with: {command('train', folder, '--resume')}"
    )


def print_results(metrics: Mapping[str, float], folder: Path) -> None:
    """What came out, and where it is."""
    print("\n".join([*metric_lines(metrics), f"run folder: {folder}"]))


def _what_next(folder: Path) -> list[str]:
    return [command("report", folder), command("predict", folder, "PICTURE"), command("eval", folder)]


def _ranks(processes: int | None, gpus: int | None) -> int | None:
    if processes is not None and gpus is not None:
        raise typer.BadParameter("--processes and --gpus say the same thing; give one")
    if gpus is None:
        return processes
    import torch

    found = torch.cuda.device_count()
    if gpus > found:
        raise typer.BadParameter(
            f"--gpus {gpus}: this machine has {found}; without GPUs use --processes {gpus}"
        )
    return gpus
