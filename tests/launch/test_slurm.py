"""The script of a job: what it asks Slurm for, and what it does when run, with stand-ins for its programs."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from allsight.cli import main
from allsight.config import ConfigError
from allsight.launch.run import STOPPED
from allsight.launch.slurm import Job, slurm_options

# srun: as many processes as asked for, one after the other, which is enough to see what they are told.
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >> "$LOG"; fi',
    "srun": """
tasks=${1#--ntasks=}; shift 3
for rank in $(seq 0 $((tasks - 1))); do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % 2)) SLURM_NTASKS=$tasks "$@" || exit $?
done""",
    "sbatch": 'echo "1234;cluster"; echo "$@" >> "$LOG"',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with stand-ins for Slurm; the file in which they note their calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STAND_INS.items():
        file = programs / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    for name, value in {"JOB_ID": "31", "JOB_NODELIST": "node[7-8]", "JOB_NUM_NODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path / "log"


def _job(words: list[str], **changes) -> Job:
    fields = {"name": "a run", "runs": Path("runs"), "options": {"nodes": "2"}, "ranks": 2}
    return Job(words, **{**fields, **changes})


def _run(job: Job) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", job.script()], capture_output=True, text=True, check=False)


def test_each_rank_is_told_who_it_is_and_where_to_meet(slurm: Path) -> None:
    show = "echo $RANK $LOCAL_RANK $LOCAL_WORLD_SIZE $WORLD_SIZE $MASTER_ADDR $MASTER_PORT"
    done = _run(_job(["bash", "-c", show]))
    assert done.stdout.splitlines() == [f"{rank} {rank % 2} 2 4 node7 20031" for rank in range(4)], (
        done.stderr
    )
    assert done.returncode == 0 and not slurm.exists()


@pytest.mark.parametrize(("status", "calls"), [(STOPPED, "requeue 31\n"), (1, ""), (2, "")])
def test_only_a_run_that_saved_before_the_time_was_up_is_queued_again(slurm: Path, status, calls) -> None:
    done = _run(_job(["bash", "-c", f"exit {status}"]))
    assert done.returncode == status
    assert (slurm.read_text() if slurm.exists() else "") == calls


def test_words_reach_the_ranks_as_they_were_typed(slurm: Path) -> None:
    words = ["printf", "%s\\n", "it's", "a b", "tasks.x.data=$HOME"]
    done = _run(_job(words, options={"nodes": "1"}, ranks=1))
    assert done.stdout.splitlines()[:3] == ["it's", "a b", "tasks.x.data=$HOME"]


def test_the_script_asks_for_what_the_run_needs() -> None:
    text = _job(["x"], ranks=8, uses_gpus=True, options={"nodes": "4", "time": "24:00:00"}).script()
    asked = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "time=24:00:00", "requeue"} <= set(asked)
    assert {"signal=USR1@180", "job-name='a run'"} <= set(asked) and "exclusive" not in asked
    assert "signal=USR1@600" in _job(["x"], options={"signal": "USR1@600"}).script()


def test_whole_machines_are_taken_where_nobody_says_how_many_ranks(slurm: Path, monkeypatch) -> None:
    assert "#SBATCH --exclusive\n" in _job(["x"], ranks=None).script()
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "3")
    assert len(_run(_job(["bash", "-c", "echo $RANK"], ranks=None)).stdout.split()) == 6


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("partition=v,nodes=4", {"partition": "v", "nodes": "4"}),
        ("nodelist=n[1,2],exclude=a,b", {"nodelist": "n[1,2]", "exclude": "a,b"}),
        ("exclusive=true", {"exclusive": "true"}),
    ],
)
def test_options_are_those_of_sbatch(text, options) -> None:
    assert slurm_options(text) == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vision", "expected options of sbatch such as partition=NAME.* got 'vision'"),
        ("Partition=x", "got 'Partition=x'"),
        ("gpus=8", "gpus is decided by --gpus"),
        ("nodes=2,ntasks=4", "ntasks is decided by --gpus or --processes"),
    ],
)
def test_options_that_cannot_be_are_refused(text, said) -> None:
    with pytest.raises(ConfigError, match=said):
        slurm_options(text)


def test_a_run_is_submitted_or_only_shown(slurm: Path, tmp_path: Path, capsys) -> None:
    words = ["train", "joint_smoke", "--runs", str(tmp_path / "runs"), "--name", "a", "--gpus", "8"]
    words += ["--slurm", "partition=vision", "--nodes", "4"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert (
        "train joint_smoke --runs" in shown and "--resume-or-start" in shown and "#SBATCH --nodes=4" in shown
    )
    assert not slurm.exists() and not (tmp_path / "runs").exists()
    assert main(words) == 0
    file = tmp_path / "runs" / "a.sbatch"
    assert file.read_text() == shown and slurm.read_text() == f"--parsable {file}\n"
    assert capsys.readouterr().out.startswith(f"job 1234: {file}\n")


def test_a_machine_without_slurm_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [
        "train",
        "joint_smoke",
        "--runs",
        str(tmp_path / "runs"),
        "--slurm",
        "nodes=1",
        "--processes",
        "2",
    ]
    assert main(words) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err
