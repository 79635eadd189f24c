"""`allsight train`."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allsight.cli.launching import (
    DryRun,
    Gpus,
    Launch,
    MaxRestarts,
    Nodes,
    Processes,
    Rendezvous,
    Slurm,
    submit,
)
from allsight.cli.pipes import say, unread_is_fine
from allsight.cli.words import Changes, Recipe, Trust, check_backend, command, metric_lines

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig
    from allsight.engine.resuming import Resume
    from allsight.engine.trainer import Trainer


def train(
    recipe: Recipe,
    changes: Changes = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint of the run folder.")
    ] = False,
    resume_or_start: Annotated[
        bool,
        typer.Option(
            "--resume-or-start",
            help="As --resume, or start if nothing is saved; for jobs that are run again.",
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run folder; default the recipe's.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run folders lie.")] = Path(
        "runs"
    ),
    trust: Trust = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
    processes: Processes = None,
    gpus: Gpus = None,
    nodes: Nodes = None,
    rendezvous: Rendezvous = None,
    max_restarts: MaxRestarts = 0,
    slurm: Slurm = None,
    dry_run: DryRun = False,
) -> None:
    """Train a recipe in a new run folder, or go on with a run.

    \b
    allsight train joint_world data.root=world
    allsight train internimage_micro_tiny20 optim.lr=1e-3 schedule.epochs=4 --name quick
    allsight train my_recipes.py:generalist --processes 2
    allsight train internimage_t_in1k --gpus 8 --slurm partition=vision,nodes=4
    allsight train runs/quick --resume

    With --resume only settings that leave the course of training as it is may change: data.root,
    data.workers, data.prefetch, data.max_corrupt_fraction, train.threads, train.accumulate,
    train.recover_memory, train.max_skipped_in_a_row, train.norms_every, eval, checkpoint, parallel, profile.
    """
    from allsight.cli.resuming import config_for
    from allsight.config import ConfigError
    from allsight.launch.run import in_group, is_first, run_ranks, was_restarted, with_strategy

    launch = Launch(processes, gpus, nodes, rendezvous, max_restarts, slurm, dry_run)
    words = ["train", recipe, *(changes or []), "--runs", str(runs)]
    words += [] if name is None else ["--name", name]
    flags = {"--resume": resume, "--resume-or-start": resume_or_start, "--trust": trust, "--quiet": quiet}
    words += [flag for flag, is_set in flags.items() if is_set]
    strategy_is_given = any(change.startswith("parallel.strategy=") for change in changes or [])
    going_on: Resume = "if saved" if resume_or_start or (in_group() and was_restarted()) else resume
    starts_ranks = launch.starts_ranks and not in_group()
    folder, config, notes = config_for(
        recipe,
        changes or [],
        resume=going_on,
        name=name,
        runs=runs,
        trust=trust,
        # A machine that came first may have begun it already.
        is_looked_at=not (starts_ranks and launch.node_range()[1] > 1),
    )
    if slurm is not None and not in_group():
        return submit(launch, words, config, folder)
    if starts_ranks:
        group = launch.group(config)
        if group.ranks * group.max_nodes > 1 and strategy_is_given and config.parallel.strategy == "single":
            raise ConfigError(
                f"config.parallel.strategy: 'single' uses one process, not {group.ranks * group.max_nodes}; "
                "leave it out or set ddp"
            )
        # A machine that comes back to such a run knows of no restart.
        returns = group.is_elastic and group.max_nodes > 1 and "--resume-or-start" not in words
        status = run_ranks([*words, "--resume-or-start"] if returns else words, group)
        if status:
            raise typer.Exit(status)
        return
    config = with_strategy(config, set_by_user=strategy_is_given)
    metrics = train_with_progress(config, folder, resume=going_on, quiet=quiet, notes=notes, words=words)
    with unread_is_fine():
        if is_first():
            print_results(metrics, folder)
            print("\n".join(["next:", *(f"  {line}" for line in _what_next(folder))]))


def train_with_progress(
    config: RunConfig,
    folder: Path,
    *,
    words: Sequence[str],
    resume: Resume = False,
    quiet: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, float]:
    """Train to the end with progress on the terminal; the metrics.

    Args:
        words: What the user typed after `allsight`, for the run's record.
        notes: What else to write down at the start.
    Raises:
        RunFailed: The run stopped itself, or its last checkpoint could not be written.
        RunStopped: A signal said that time is up; the run is saved.
        KeyboardInterrupt: Ctrl-C; saved after the first, what was saved before stays after the second.
    """
    from allsight.engine.joining import RanksMissing
    from allsight.engine.trainer import RunFailed, RunStopped, Trainer
    from allsight.launch.stopping import stopping_on_signals
    from allsight.view import Progress

    check_backend()
    trainer = Trainer(config, folder=folder, resume=resume, command=["allsight", *words])
    for note in notes:
        trainer.events.write("note", trainer.step, text=note)
    interrupted = False

    def ask_to_stop(reason: str) -> None:
        nonlocal interrupted
        if reason == f"signal {signal.SIGINT.name}":
            interrupted = True
            if trainer.ranks.is_first:  # By the system's call, since a handler may come amid any print.
                with suppress(OSError):
                    os.write(2, b"\nending the step and saving; Ctrl-C again stops at once\n")
        trainer.ask_to_stop(reason)

    try:
        silent = quiet or not trainer.ranks.is_first
        with (
            stopping_on_signals(ask_to_stop),
            Progress(steps=trainer.steps, tasks=list(trainer.tasks), silent=silent) as progress,
        ):
            trainer.listeners.append(progress)
            metrics = trainer.fit()
        if trainer.saved_step != trainer.step:
            raise RunFailed(_lost(trainer, folder))
    except (RunStopped, RanksMissing) as error:
        if interrupted and isinstance(error, RunStopped):
            say(f"{error}; {_how_to_go_on(folder)}")
            raise KeyboardInterrupt from None
        raise type(error)(f"{error}; {_how_to_go_on(folder)}") from None
    except KeyboardInterrupt:
        say(f"stopped at step {trainer.step}; {_how_to_go_on(folder)}")
        raise
    finally:
        trainer.close()
    return metrics


def _how_to_go_on(folder: Path) -> str:
    from allsight.engine.checkpoint import newest_whole

    saved = newest_whole(folder / "checkpoints")
    return f"go on with: {command('train', folder, '--resume')}" if saved else "nothing was saved yet"


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
