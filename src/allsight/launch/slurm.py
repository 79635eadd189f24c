"""Runs as jobs of Slurm: the script of a job is made here, shown by `--dry-run`, and handed to `sbatch`."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from allsight.config import ConfigError
from allsight.launch.run import STOPPED

_OWN = {
    "ntasks": "--gpus or --processes",
    "ntasks-per-node": "--gpus or --processes",
    "gpus": "--gpus, for one machine",
    "gpus-per-node": "--gpus",
    "gres": "--gpus",
    "job-name": "--name",
}
"""Options of sbatch that other words of the command decide."""

_DEFAULTS = {
    # Three minutes before the time is up; "B:" would tell only the script, not the ranks.
    "signal": "USR1@180",
    "requeue": "true",
    "open-mode": "append",
}


@dataclass(frozen=True)
class Job:
    """A run as a job.

    Args:
        words: What each rank runs, program first.
        name: Of the run.
        runs: Where the script and the output go.
        options: Of sbatch, without dashes.
        ranks: Processes a machine; None takes whole machines and one rank for each GPU.
        uses_gpus: Whether each rank needs one.
    """

    words: Sequence[str]
    name: str
    runs: Path
    options: Mapping[str, str]
    ranks: int | None = None
    uses_gpus: bool = False

    def script(self) -> str:
        """The script for sbatch.

        Ranks that were stopped by the signal before the time is up have saved and end with a status of their
        own; the job is then queued again and goes on, as it does after a machine failed.
        """
        options = {
            "job-name": self.name,
            "nodes": "1",
            "output": str(self.runs / f"{self.name}-%j.out"),
            **_DEFAULTS,
            **({"exclusive": "true"} if self.ranks is None else {"ntasks-per-node": str(self.ranks)}),
            **({"gpus-per-node": str(self.ranks)} if self.uses_gpus else {}),
            **self.options,
        }
        lines = [
            f"#SBATCH --{key}" if value == "true" else f"#SBATCH --{key}={_quoted(value)}"
            for key, value in options.items()
            if value != "false"
        ]
        ranks = self.ranks if self.ranks is not None else "${SLURM_GPUS_ON_NODE:-1}"
        return _SCRIPT.format(
            options="\n".join(lines),
            ranks=ranks,
            words=shlex.join(self.words),
            stopped=STOPPED,
        )

    def submit(self) -> tuple[str, Path]:
        """Write the script and hand it in; the number of the job, and the script.

        Raises:
            ConfigError: No sbatch here, or it refuses the job.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        file = self.runs / f"{self.name}.sbatch"
        file.write_text(self.script(), encoding="utf-8")
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise ConfigError(
                f"--slurm: there is no sbatch on this machine; submit {file} where there is one"
            ) from None
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise ConfigError(f"--slurm: sbatch refuses {file}: {said}")
        return done.stdout.strip().partition(";")[0], file


def slurm_options(text: str) -> dict[str, str]:
    """`partition=vision,nodes=4` as options of sbatch; a value may hold commas.

    Raises:
        ConfigError: Not KEY=VALUE, or what another option says.
    """
    found: dict[str, str] = {}
    for piece in text.split(","):
        key, equals, value = piece.partition("=")
        if not equals and found:
            found[next(reversed(found))] += f",{piece}"
            continue
        key = key.strip().lstrip("-")
        if not equals or not re.fullmatch(r"[a-z][a-z-]*", key):
            raise ConfigError(
                f"--slurm {text}: expected options of sbatch such as partition=NAME,nodes=4,time=24:00:00, "
                f"got '{piece}'; one without value is KEY=true"
            )
        if key in _OWN:
            raise ConfigError(f"--slurm {text}: {key} is decided by {_OWN[key]}; leave it out there")
        found[key] = value.strip()
    return found


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w@%+=:,./\[\]-]*", value) else shlex.quote(value)


_SCRIPT = """\
#!/bin/bash
{options}

# All ranks meet on the first machine.
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export LOCAL_WORLD_SIZE={ranks}
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}

srun --ntasks=$((SLURM_JOB_NUM_NODES * LOCAL_WORLD_SIZE)) --ntasks-per-node="$LOCAL_WORLD_SIZE" \\
    --kill-on-bad-exit=1 bash -c '
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
exec "$@"' rank {words}
status=$?

# {stopped}: time was nearly up, and the run is saved.
if [ "$status" -eq {stopped} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
