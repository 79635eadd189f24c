"""Where a `train` command runs: here, as ranks of this machine or of several, or as a job of Slurm."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allsight.cli.words import command, program

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig
    from allsight.launch.run import Group

Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Start so many ranks on this machine.")
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Start one rank for each of so many GPUs of this machine.")
]
Nodes = Annotated[
    str | None,
    typer.Option(
        "--nodes",
        metavar="N|MIN:MAX",
        help="Machines; the same command is typed on each. MIN:MAX goes on with fewer when some fail.",
    ),
]
Rendezvous = Annotated[
    str | None,
    typer.Option(
        "--rendezvous",
        metavar="HOST:PORT",
        help="Where machines meet: the first one, and a free port. Default $MASTER_ADDR:$MASTER_PORT.",
        show_default=False,
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts", min=0, help="Start the ranks again after one died, from the newest checkpoint."
    ),
]
Slurm = Annotated[
    str | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE,...",
        help="Submit a job with these options of sbatch, such as partition=vision,nodes=4,time=24:00:00.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="With --slurm: print the job script, submit nothing.")
]


@dataclass(frozen=True)
class Launch:
    """What the user said about where to run; fields as the options."""

    processes: int | None = None
    gpus: int | None = None
    nodes: str | None = None
    rendezvous: str | None = None
    max_restarts: int = 0
    slurm: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.processes is not None and self.gpus is not None:
            raise typer.BadParameter("--processes and --gpus say the same thing; give one")
        if self.dry_run and self.slurm is None:
            raise typer.BadParameter(
                "--dry-run prints the script of --slurm; without a job use `allsight plan`"
            )
        if self.slurm is not None and (self.max_restarts or self.rendezvous):
            raise typer.BadParameter(
                "--slurm queues a job again after a machine failed, and knows where its machines meet; leave "
                "out --max-restarts and --rendezvous"
            )
        if self.rendezvous and self.nodes is None:
            raise typer.BadParameter("--rendezvous is where several machines meet; say how many by --nodes")

    @property
    def starts_ranks(self) -> bool:
        """Whether this process only starts others, on this machine."""
        return bool(self.processes or self.gpus or self.nodes or self.max_restarts)

    @property
    def ranks(self) -> int:
        """Ranks of this machine."""
        return self.gpus or self.processes or 1

    def node_range(self) -> tuple[int, int]:
        """Fewest and most machines.

        Raises:
            typer.BadParameter: Not N or MIN:MAX.
        """
        low, _, high = (self.nodes or "1").partition(":")
        if not (low.isdigit() and (high or low).isdigit()) or not 1 <= int(low) <= int(high or low):
            raise typer.BadParameter(f"--nodes {self.nodes}: expected N or MIN:MAX, such as 4 or 2:4")
        return int(low), int(high or low)

    def group(self, config: RunConfig) -> Group:
        """The ranks to start here.

        Raises:
            typer.BadParameter: Fewer GPUs than ranks, or nobody said where machines meet.
        """
        from allsight.launch.run import Group

        self._check_gpus()
        least, most = self.node_range()
        meeting = self.rendezvous or _meeting_of_environment()
        if most > 1 and not meeting:
            raise typer.BadParameter(
                f"--nodes {self.nodes}: say where they meet, --rendezvous HOST:PORT with the name of the "
                "first machine and a free port, and type the same command on each; or use --slurm"
            )
        return Group(
            self.ranks,
            least,
            most,
            meeting if most > 1 else "",
            self.max_restarts,
            config.parallel.timeout_s if most > 1 else 60.0,
        )

    def _check_gpus(self) -> None:
        if self.gpus is None:
            return
        import torch

        found = torch.cuda.device_count()
        if self.gpus > found:
            raise typer.BadParameter(
                f"--gpus {self.gpus}: this machine has {found}; without GPUs use --processes {self.gpus}"
            )


def submit(launch: Launch, words: Sequence[str], config: RunConfig, folder: Path) -> None:
    """Submit the run as a job, or show its script."""
    from allsight.launch.slurm import Job, slurm_options

    assert launch.slurm is not None
    options = slurm_options(launch.slurm)
    if launch.nodes is not None:
        if "nodes" in options:
            raise typer.BadParameter("--nodes and nodes= of --slurm say the same thing; give one")
        least, most = launch.node_range()
        options["nodes"] = str(most) if least == most else f"{least}-{most}"
    job = Job(
        words=[*program(), *words, "--resume-or-start"],
        name=config.name,
        runs=folder.parent,
        options=options,
        ranks=launch.gpus or launch.processes,
        uses_gpus=launch.gpus is not None,
    )
    if launch.dry_run:
        print(job.script(), end="")
        return
    number, file = job.submit()
    print(f"job {number}: {file}")
    print(f"next:\n  {command('watch', folder)}")


def _meeting_of_environment() -> str:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    return f"{host}:{port}" if host and port else ""
