"""Watching a run folder from outside: finished, running, failed, cut off, and not there yet."""

import io
import time

import pytest

from allsight.config import ConfigError
from allsight.view import watch, watch_run
from allsight.view.watch import Follower

HOUR = 3600.0


class Clock:
    """Replaces sleeping: each sleep does the next thing that happens to the run, and ends with Ctrl-C."""

    def __init__(self, *happenings):
        self.happenings = list(happenings)

    def __call__(self, seconds):
        if not self.happenings:
            raise KeyboardInterrupt
        self.happenings.pop(0)()


@pytest.fixture
def happening(monkeypatch):
    return lambda *happenings: monkeypatch.setattr(watch.time, "sleep", Clock(*happenings))


def watched(folder, **options):
    stream = io.StringIO()
    status = watch_run(folder, stream=stream, **options)
    return status, stream.getvalue().splitlines()


def alive(run, ago_s=1.0):
    """Let the run's clock be that of the machine."""
    run.time = time.time() - ago_s
    return run


def training(run, first, last):
    for step in range(first, last):
        run.event("train", step, {"loss": 2.0, "lr": 1e-3, "seconds": 0.5, "samples": 64})
        run.event("train", step, {"loss": 2.5}, "tiny20")
    return run


def begun(run):
    return run.event("system", 0, {"steps": 40}, text="cpu")


@pytest.mark.parametrize("once", [True, False])
def test_a_finished_run_is_shown_as_it_ended(fake_run, once):
    run = training(begun(alive(fake_run(planned=40), HOUR)), 0, 40)
    run.event("eval", 40, {"top1": 0.5, "top5": 0.75, "loss": 1.0}, "tiny20", "ema")
    run.event("data", 40, {"corrupt": 1}, "camvid", "train/3.png: cut short")
    run.event("system", 40, {"seconds": 20.0}, text="finished")
    status, lines = watched(run.write(), once=once)
    assert status == 0
    assert ": finished " in lines[0]
    assert lines[1:] == [
        "step 40/40  tiny20 2.500  lr 1.0e-03  128 img/s",
        "eval at 40  tiny20  top1 0.5000  top5 0.7500  (ema)",
        "corrupt samples in camvid: 1",
    ]


def test_a_running_run_is_followed_to_its_end(fake_run, happening):
    run = training(begun(alive(fake_run(planned=40))), 0, 3)
    folder = run.write()

    def goes_on():
        training(run, 3, 30).event("alarm", 29, {"skipped": 1}, text="step 29: skipped")
        run.write()

    def ends():
        training(run, 30, 40).event("system", 40, {"seconds": 20.0}, text="finished")
        run.write()

    happening(goes_on, lambda: None, ends)
    status, lines = watched(folder)
    assert status == 0
    assert lines[0].endswith(": running")
    assert lines[1].startswith("step 3/40  tiny20 2.500")
    assert "alarm: step 29: skipped" in lines
    assert lines[-2].startswith("step 40/40")
    assert lines[-1] == "finished after 20s"


def test_ctrl_c_ends_the_watching_without_a_trace(fake_run, happening):
    happening()
    status, lines = watched(training(begun(alive(fake_run())), 0, 2).write())
    assert status == 0
    assert lines[0].endswith(": running")


def test_a_run_that_is_not_there_yet_is_waited_for(fake_run, tmp_path, happening):
    folder = tmp_path / "later"
    assert watched(folder, once=True) == (0, [f"{folder}: has not begun"])

    def appears():
        folder.mkdir()
        (folder / "environment.json").write_text("{}")

    def begins():
        (folder / "classes.json").unlink(missing_ok=True)
        (folder / "environment.json").unlink()
        folder.rmdir()
        begun(alive(fake_run(folder.name))).write()

    happening(appears, begins)
    status, lines = watched(folder)
    assert status == 0
    assert lines[0] == f"{folder}: has not begun; waiting for it (Ctrl-C ends)"
    assert len(lines) >= 2


def test_a_failed_run_is_an_exit_status(fake_run):
    run = training(begun(alive(fake_run(planned=40), HOUR)), 0, 5).event(
        "alarm", 5, text="step 5: 20 steps were not finite"
    )
    for once in (True, False):
        status, lines = watched(run.write(), once=once)
        assert status == 1
        assert ": failed " in lines[0]
        assert lines[0].endswith("step 5: 20 steps were not finite")


def test_a_run_cut_off_is_said_to_be_silent_and_may_go_on(fake_run, happening):
    run = training(begun(alive(fake_run(planned=40), HOUR)), 0, 5)
    folder = run.write()
    status, lines = watched(folder, once=True)
    assert status == 1
    assert ": stopped: last sign of life " in lines[0]
    assert "left" not in lines[1]

    def resumes():
        alive(run).event("restart", 4, {"from_step": 4}, text="resumed from step-00000004").write()

    happening(resumes, lambda: None)
    status, lines = watched(folder)
    assert status == 0
    assert "restart: resumed from step-00000004" in lines


def test_each_silence_is_noted_once(fake_run, happening, monkeypatch):
    run = training(begun(alive(fake_run(planned=40))), 0, 5)
    folder, now = run.write(), time.time()

    def hours_later(hours):
        monkeypatch.setattr(watch.time, "time", lambda: now + hours * HOUR)

    def goes_on():
        run.time = now + HOUR
        training(run, 5, 6).write()

    happening(lambda: hours_later(1), lambda: None, goes_on, lambda: hours_later(3), lambda: None)
    _, lines = watched(folder)
    silences = [line for line in lines if line.startswith("no sign of life for ")]
    assert [line.split(";")[0] for line in silences] == [f"no sign of life for {h}h00m" for h in (1, 2)]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a run folder"):
        watched(tmp_path)


def test_a_line_being_written_waits_for_its_rest_and_a_torn_one_is_passed_over(tmp_path):
    file = tmp_path / "events.jsonl"
    follower = Follower(file)
    assert list(follower.new()) == []
    file.write_bytes(b'{"kind": "note", "text": "a"}\n{"kind": "no')
    assert [event["text"] for event in follower.new()] == ["a"]
    with file.open("ab") as opened:
        opened.write(b'te", "text": "b"}\nrubbish\n{"kind": "note", "text": "c"}\n')
    assert [event["text"] for event in follower.new()] == ["b", "c"]
    file.write_bytes(b'{"kind": "note", "text": "anew"}\n')
    assert [event["text"] for event in follower.new()] == ["anew"]
