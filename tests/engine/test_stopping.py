"""A run that is told to stop saves, and goes on later as if nothing had been; signals reach only it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest
import torch
from rank_run import result_of
from small_run import small_run

from allsight.config import ConfigError, replace
from allsight.engine.trainer import RunFailed, RunStopped, Trainer
from allsight.launch.stopping import stopping_on_signals


def _assert_bits(first: Trainer, second: Trainer) -> None:
    expected = result_of(first)
    for name, tensor in result_of(second).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    whole = Trainer(small_run())
    for _ in whole:
        pass
    trainer = Trainer(small_run(), folder=tmp_path / "run")
    with pytest.raises(RunStopped, match="stopped at step 6 by signal SIGTERM, saved"):
        for step in trainer:
            if step.number == 4:
                trainer.ask_to_stop("signal SIGTERM")
    trainer.close()
    again = Trainer(small_run(), folder=tmp_path / "run", resume="if saved")
    assert again.step == trainer.saved_step == 6
    for _ in again:
        pass
    again.close()
    _assert_bits(whole, again)


def test_a_run_that_ends_anyway_is_not_stopped(tmp_path):
    trainer = Trainer(small_run(), folder=tmp_path / "run")
    for step in trainer:
        if step.number == 10:
            trainer.ask_to_stop("signal SIGTERM")
    trainer.close()
    assert trainer.saved_step == 12


def test_a_stop_that_cannot_be_saved_is_a_failure(tmp_path, monkeypatch):
    trainer = Trainer(replace(small_run(), {"checkpoint.asynchronous": False}), folder=tmp_path / "run")
    monkeypatch.setattr(trainer, "save", lambda: False)
    trainer.ask_to_stop("signal SIGUSR1")
    with pytest.raises(RunFailed, match="was to stop by signal SIGUSR1, but no checkpoint"):
        next(iter(trainer))
    trainer.close()


def test_if_saved_begins_where_there_is_nothing_and_goes_on_where_there_is(tmp_path):
    folder = tmp_path / "run"
    # As a process leaves it that is killed while it makes its folder.
    folder.mkdir()
    (folder / "environment.json").write_text("{}")
    trainer = Trainer(small_run(), folder=folder, resume="if saved")
    assert trainer.step == 0
    next(iter(trainer))
    trainer.save()
    trainer.close()
    again = Trainer(small_run(), folder=folder, resume="if saved")
    again.close()
    assert again.step == 1
    with pytest.raises(ConfigError, match=r"config\.seed: the run was started with 0, now 1"):
        Trainer(small_run(seed=1), folder=folder, resume="if saved")


def test_if_saved_takes_no_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="a run of this name exists"):
        Trainer(small_run(), folder=tmp_path, resume="if saved")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_ask_and_are_given_back(number):
    before, heard = signal.getsignal(number), []
    with stopping_on_signals(heard.append):
        os.kill(os.getpid(), number)
    assert heard == [f"signal {number.name}"]
    assert signal.getsignal(number) is before


def test_the_first_ctrl_c_asks_and_the_second_stops_at_once():
    before, heard = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), stopping_on_signals(heard.append):
        signal.raise_signal(signal.SIGINT)
        assert heard == ["signal SIGINT"]
        signal.raise_signal(signal.SIGINT)
    assert heard == ["signal SIGINT"] and signal.getsignal(signal.SIGINT) is before


def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it():
    before, heard = signal.signal(signal.SIGINT, signal.SIG_IGN), []
    try:
        with stopping_on_signals(heard.append):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == []


def test_processes_forked_meanwhile_end_by_the_signal():
    with stopping_on_signals(lambda reason: None):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


HOLD = """
import sys
from pathlib import Path
from allsight.engine.distributed import join_ranks
from allsight.engine.run_folder import hold_run_folder
hold = hold_run_folder(Path(sys.argv[1]), resume=False, ranks=join_ranks("single", 60.0, "cpu"))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_does_not_train_into_the_same_folder(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for resume in (False, "if saved"):
            with pytest.raises(ConfigError, match=f"{folder}: another process is training in it; wait"):
                Trainer(small_run(), folder=folder, resume=resume)
        assert [path.name for path in folder.iterdir()] == [".lock"]
        other.kill()
    trainer = Trainer(small_run(), folder=folder)
    trainer.close()


def test_a_run_that_another_process_made_meanwhile_is_not_written_over(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    Trainer(small_run(), folder=folder).close()
    before = (folder / "resolved.yaml").read_bytes()
    monkeypatch.setattr("allsight.engine.trainer.open_run_folder", lambda *args, **options: None)
    with pytest.raises(ConfigError, match="a run of this name exists"):
        Trainer(small_run(seed=1), folder=folder)
    assert (folder / "resolved.yaml").read_bytes() == before
