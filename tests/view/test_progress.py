import io
from typing import Any

import pytest

from allsight.view import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def event(kind: str, step: int, time: float, task: str | None = None, text: str = "", **values: Any) -> dict:
    return {"time": time, "step": step, "rank": 0, "kind": kind, "task": task, "values": values, "text": text}


def steps(first: int, last: int, seconds: float = 1.0) -> list[dict]:
    """Two tasks in turn, one step after the other."""
    found = []
    for step in range(first, last):
        time, task = step * seconds, ("tiny20", "camvid")[step % 2]
        values = {"loss": 2.0, "lr": 1.9e-3, "grad_norm": 1.0, "wait_s": 0.0, "samples": 64}
        found.append(event("train", step, time, seconds=0.125, **values))
        found.append(event("train", step, time, task, loss=2.5 if task == "tiny20" else 0.75))
    return found


def shown(events: list[dict], stream: io.StringIO | None = None, **settings: Any) -> str:
    stream = io.StringIO() if stream is None else stream
    with Progress(stream=stream, **settings) as progress:
        for each in events:
            progress(each)
    return stream.getvalue()


def test_plain_lines_word_for_word():
    events = [
        event("system", 0, 0.0, text="cpu", steps=40, parameters=2),
        *steps(0, 12),
        event("alarm", 11, 12.0, text="step 11: non-finite loss in task 'camvid'; step skipped", skipped=1),
        *steps(12, 20),
        event("eval", 20, 20.0, "tiny20", "ema", top1=0.61234, top5=0.9, loss=1.25, seconds=3, samples=9),
        event("eval", 20, 20.0, None, main=0.61234),
        event("checkpoint", 20, 20.0, text="checkpoints/step-00000020", seconds=0.1, bytes=9),
        *steps(20, 40),
        event("system", 40, 41.0, text="finished", seconds=41.0),
    ]
    assert shown(events, steps=1, tasks=["tiny20", "camvid"]).splitlines() == [
        "step 1/40  tiny20 2.500  lr 1.9e-03  512 img/s",
        "step 11/40  tiny20 2.500  camvid 0.750  lr 1.9e-03  512 img/s  left 29s",
        "alarm: step 11: non-finite loss in task 'camvid'; step skipped",
        "eval at 20  tiny20  top1 0.6123  top5 0.9000  loss 1.250  (ema)",
        "step 21/40  tiny20 2.500  camvid 0.750  lr 1.9e-03  512 img/s  left 19s",
        "step 31/40  tiny20 2.500  camvid 0.750  lr 1.9e-03  512 img/s  left 9.0s",
        "step 40/40  tiny20 2.500  camvid 0.750  lr 1.9e-03  512 img/s",
        "finished after 41s",
    ]


def test_a_run_of_a_day_is_told_in_some_hundred_lines():
    lines = shown(steps(0, 17_280, seconds=5.0), steps=17_280).splitlines()
    assert 100 < len(lines) < 800


def test_many_corrupt_samples_do_not_fill_the_screen():
    events = [
        event("data", i, float(i), "tiny20", f"n{i}: truncated; replaced by m", corrupt=i)
        for i in range(1000)
    ]
    lines = shown(events, steps=1000).splitlines()
    assert len(lines) < 15
    assert lines[0] == "corrupt sample in tiny20: n0: truncated; replaced by m"
    assert lines[4] == "corrupt samples in tiny20: 5 so far, the last is n4: truncated; replaced by m"


def test_non_finite_losses_are_left_out_of_the_mean():
    lost = [event("train", 1, 1.0, loss="nan"), event("train", 1, 1.0, "tiny20", loss="nan")]
    assert "tiny20 2.500" in shown([*steps(0, 1), *lost, *steps(2, 4)], steps=4)


def test_a_terminal_gets_a_live_display():
    events = [
        event("system", 0, 0.0, text="cpu", steps=10),
        *steps(0, 10),
        event("alarm", 5, 5.0, text="step 5: [red] loss", skipped=1),
        event("eval", 10, 10.0, "tiny20", "ema", top1=0.5, loss=1.0),
        event("system", 10, 41.0, text="finished", seconds=41.0),
    ]
    text = shown(events, Terminal(), steps=10, tasks=["tiny20", "camvid"])
    for words in ("10/10", "512 img/s", "loss 2.500", "top1 0.5000", "[red] loss", "1 step skipped"):
        assert words in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


def test_the_terminal_is_left_alone_until_there_is_something_to_show():
    assert shown([], steps=10) == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_silent_shows_nothing(stream: type[io.StringIO]):
    assert shown(steps(0, 9), stream(), steps=9, silent=True) == ""


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_closed_pipe_does_not_reach_the_run():
    shown(steps(0, 9), Closed(), steps=9)


def test_a_strange_event_is_told_once_and_does_not_reach_the_run():
    text = shown([{"kind": "train"}, {"kind": "train"}, *steps(0, 3)], steps=9)
    assert text.splitlines() == ["progress is not shown any more (KeyError: 'task'); the run goes on"]


def test_progress_of_a_real_trainer_folder_of_events(fake_run):
    from allsight.view import read_events

    run = fake_run(planned=40)
    run.whole()
    text = shown(list(read_events(run.folder)), steps=40)
    assert "step 40/40" in text
    assert text.count("eval at ") == 8
