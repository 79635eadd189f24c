"""Nobody reads on: what only prints ends quietly, and a training goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from allsight.cli import main, running
from allsight.view import Progress


@contextmanager
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, standard output and error are pipes whose other ends are closed."""
    streams = []
    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            read, write = os.pipe()
            os.close(read)
            streams.append(os.fdopen(write, "w", buffering=1))
            for attribute in (name, f"__{name}__"):
                patch.setattr(sys, attribute, streams[-1])
        yield
    for stream in streams:
        # Fails where something was left in it that could not be written.
        stream.close()


@pytest.mark.parametrize("words", ["config joint_smoke", "config --list", "doctor --help"])
def test_what_only_prints_ends_with_the_status_of_a_closed_pipe(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unread(monkeypatch):
        status = main(words.split())
    assert status == 141


def test_a_fault_keeps_its_status_though_nobody_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with unread(monkeypatch):
        status = main(["config", "joint_smok"])
    assert status == 2


def test_a_training_goes_on_and_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def train(*given: object, **more: object) -> dict[str, float]:
        with Progress() as progress:
            for step in range(3):
                progress.say(f"step {step}")
                done.append(progress.is_read)
        return {"main": 0.5}

    monkeypatch.setattr(running, "train_with_progress", train)
    with unread(monkeypatch):
        status = main(["train", "joint_smoke", "--runs", str(tmp_path)])
    assert (status, len(done), done[-1]) == (0, 3, False)


def test_other_broken_pipes_are_faults_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **more: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(running, "train_with_progress", fail)
    with pytest.raises(BrokenPipeError):
        main(["train", "joint_smoke"])


def test_watching_ends_when_nobody_looks(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in trained.iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(events[: len(events) // 2]))
    with unread(monkeypatch):
        status = main(["watch", str(run)])
    assert status == 141


def test_the_shell_sees_no_word_of_it() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "allsight.cli", "config", "--list"],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
