import math
from pathlib import Path

import pytest

from allsight.config import ConfigError
from allsight.view import read_run
from allsight.view.record import READS_FORMAT

DAY = 86400.0


def test_a_finished_run_is_read_whole(fake_run):
    run = fake_run()
    record = read_run(run.whole())
    assert record.status() == ("finished", "")
    assert (record.steps_done, record.steps_planned) == (200, 200)
    assert list(record.tasks) == ["tiny20", "camvid"]
    tiny20 = record.tasks["tiny20"]
    assert tiny20.main() is not None and tiny20.main()[0] == "top1"
    assert tiny20.classes[0] == "cat"
    assert len(tiny20.train["loss"]) + len(record.tasks["camvid"].train["loss"]) == 200
    assert len(record.main) == 4
    assert record.problems == []


def test_the_format_read_is_the_format_written():
    from allsight.engine.config import FORMAT

    assert READS_FORMAT == FORMAT


def test_a_run_of_a_newer_format_is_refused(fake_run):
    folder = fake_run().write()
    file = folder / "resolved.yaml"
    file.write_text(file.read_text().replace("format: 1", "format: 2"))
    with pytest.raises(ConfigError, match=r"resolved\.yaml: format 2 is newer .* update allsight"):
        read_run(folder)


def test_a_missing_run_and_another_folder_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="not a run folder"):
        read_run(tmp_path)


def test_a_run_without_events_or_environment_is_read_and_the_gaps_are_told(fake_run):
    folder = fake_run().folder
    (folder / "environment.json").unlink()
    (folder / "classes.json").write_text("{broken")
    record = read_run(folder)
    assert record.status()[0] == "stopped"
    assert len(record.problems) == 3


def test_steps_done_again_after_a_restart_count_once(fake_run):
    run = fake_run(planned=100).begin().train(0, 40).evaluate(40).train(40, 60)
    run.event("restart", 40, {"from_step": 40}, text="resumed from step-00000040")
    run.train(40, 50)
    record = read_run(run.write())
    assert record.steps["loss"].steps == list(range(50))
    assert sum(len(task.train["loss"]) for task in record.tasks.values()) == 50
    assert record.repeated_steps == 20
    assert record.repeated_seconds > 0
    assert record.tasks["tiny20"].main()[1].steps == [40]


def test_what_a_restart_has_yet_to_do_again_is_forgotten(fake_run):
    run = fake_run(planned=100).begin().train(0, 60).evaluate(60)
    run.event("restart", 40, {"from_step": 40}, text="resumed from step-00000040")
    record = read_run(run.write())
    assert record.steps_done == 40
    assert record.tasks["tiny20"].main()[1].steps == []


def test_a_run_with_a_recent_event_is_running_and_later_it_is_stopped(fake_run):
    run = fake_run().begin().train(0, 10)
    folder = run.write()
    assert read_run(folder, now_s=run.time + 5).status()[0] == "running"
    assert read_run(folder, now_s=run.time + DAY).status()[0] == "stopped"


def test_a_run_that_stopped_itself_has_failed_with_its_reason(fake_run):
    run = fake_run().begin().train(0, 10)
    run.event("alarm", 10, text="step 10: 20 steps in a row were not finite; lower optim.lr")
    record = read_run(run.write(), now_s=run.time + 1)
    assert record.status() == ("failed", "step 10: 20 steps in a row were not finite; lower optim.lr")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"skipped": 1}, "step 9: non-finite loss in task 'camvid'; step skipped"),
        ({}, "step 9: checkpoint not written: disk full; older ones are kept, training goes on"),
    ],
)
def test_an_alarm_that_stops_nothing_is_no_failure(fake_run, values, text):
    run = fake_run().begin().train(0, 10).event("alarm", 9, values, text=text)
    assert read_run(run.write(), now_s=run.time + 1).status()[0] == "running"


def test_a_finished_run_that_goes_on_is_not_finished(fake_run):
    run = fake_run().begin().train(0, 10).finish()
    run.event("restart", 10, {"from_step": 10}, text="resumed")
    run.begin().train(10, 12)
    assert read_run(run.write(), now_s=run.time + 1).status()[0] == "running"


def test_averaged_weights_are_the_ones_that_count(fake_run):
    run = fake_run().begin().train(0, 50).evaluate(50, weights="raw", gain=0.5).evaluate(50, weights="ema")
    task = read_run(run.write()).tasks["tiny20"]
    assert set(task.evaluations) == {"raw", "ema"}
    assert task.judged is task.evaluations["ema"]


def test_the_best_is_the_earliest_greatest_and_never_nan(fake_run):
    run = fake_run()
    for step, value in ((10, 0.5), (20, math.nan), (30, 0.7), (40, 0.7)):
        run.event("eval", step, {"top1": value, "loss": 1.0}, "tiny20", "raw")
    assert read_run(run.write()).tasks["tiny20"].best() == (30, 0.7)
