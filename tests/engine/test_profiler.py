"""Where time and memory of a run go: counters of every step, and a close look at some."""

import json

import numpy as np
import pytest
import torch
from small_run import small_run

from allsight.config import ConfigError, apply_overrides, replace
from allsight.engine.config import RunConfig
from allsight.engine.profiler.clock import StepClock
from allsight.engine.profiler.summary import RankProfile, Summary
from allsight.engine.profiler.timeline import Timeline, common, length, minus, union
from allsight.engine.profiler.utilisation import Utilisation, peak_flops
from allsight.engine.trainer import Trainer
from allsight.view.report import write_report

PARTS = ("data", "forward", "backward", "optimiser", "communication", "other")


def _trained(config: RunConfig, folder=None):
    trainer = Trainer(config, folder=folder)
    trainer.fit()
    trainer.close()
    return trainer


def _events(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A run of which two steps were looked at, and its folder."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    return _trained(apply_overrides(small_run(), ["profile.steps=3:5"]), folder), folder


def test_a_profile_leaves_traces_a_summary_and_a_note(profiled):
    _, folder = profiled
    assert {file.name for file in (folder / "profile").iterdir()} == {
        "trace-rank-0.json",
        "summary.json",
        "summary.txt",
    }
    names = {
        event.get("name")
        for event in json.loads((folder / "profile/trace-rank-0.json").read_text())["traceEvents"]
    }
    assert {f"allsight: {name}" for name in ("data", "forward", "backward", "exchange", "optimiser")} <= names
    (note,) = (event["text"] for event in _events(folder, "note"))
    assert note.startswith("profile of steps 3 to 4: ") and "waiting for data" in note
    text = (folder / "profile/summary.txt").read_text()
    assert "operators of rank 0" in text and "aten::" in text and "own work" in text


def test_parts_of_a_profile_do_not_overlap_and_make_up_its_time(profiled):
    _, folder = profiled
    found = json.loads((folder / "profile/summary.json").read_text())
    (rank,) = found["ranks"]
    assert tuple(rank["parts"]) == PARTS
    assert sum(rank["parts"].values()) == pytest.approx(rank["seconds"], rel=1e-6)
    assert all(rank["parts"][name] > 0 for name in ("data", "forward", "backward", "optimiser"))
    assert rank["parts"]["communication"] == 0 and rank["peak_bytes"] > 0
    ordered = [begin for _, begin, _ in found["lanes"]]
    assert ordered == sorted(ordered) and found["lanes"][0][0] == "data"


def test_a_profile_changes_no_weight(profiled):
    trainer, _ = profiled
    plain = _trained(small_run())
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name])


def test_the_report_shows_the_profile_and_says_if_it_cannot_be_read(profiled):
    _, folder = profiled
    page = write_report(folder).read_text()
    assert 'id="profile"' in page and "time of each rank" in page and "aten::" in page
    file = folder / "profile/summary.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    page = write_report(folder).read_text()
    assert 'id="profile"' not in page and "profile/summary.json cannot be read" in page
    file.write_text(whole)


def test_every_step_says_where_its_time_went(profiled):
    _, folder = profiled
    steps = [event["values"] for event in _events(folder, "train") if event["task"] is None]
    for values in steps:
        parts = [values[f"{name}_s"] for name in ("forward", "backward", "exchange", "optimiser")]
        assert all(part > 0 for part in parts)
        assert sum(parts) + values["wait_s"] <= values["seconds"]
        assert values["samples_per_s"] == pytest.approx(values["samples"] / values["seconds"], rel=1e-5)
        assert values["peak_bytes"] > 1e7
        assert 0 < values["mfu"] < 1


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("5", "expected FIRST:STOP, such as 20:25"),
        ("7:7", "expected FIRST:STOP"),
        ("a:b", "expected FIRST:STOP"),
        ("2:900", "profile.steps: 2:900 goes beyond the end; the run has 12 steps"),
    ],
)
def test_steps_that_there_are_not_are_refused(steps, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        Trainer(apply_overrides(small_run(), [f"profile.steps={steps}"]), folder=tmp_path / "run")


def test_a_profile_needs_a_folder():
    with pytest.raises(ConfigError, match=r"profile.steps: needs a run folder"):
        Trainer(replace(small_run(), {"profile.steps": "2:3"}))


def test_a_resumed_run_may_be_looked_at(tmp_path):
    first = Trainer(small_run(), folder=tmp_path / "run")
    for step in first:
        if step.number == 2:
            break
    first.save()
    first.close()
    again = Trainer(replace(small_run(), {"profile.steps": "4:6"}), folder=tmp_path / "run", resume=True)
    again.fit()
    again.close()
    assert (tmp_path / "run/profile/summary.json").is_file()


def test_what_cannot_be_written_is_an_alarm(tmp_path):
    (tmp_path / "run").mkdir()
    trainer = Trainer(replace(small_run(), {"profile.steps": "2:3"}), folder=tmp_path / "run")
    (tmp_path / "run/profile").write_text("in the way")
    trainer.fit()
    trainer.close()
    alarms = [event["text"] for event in _events(tmp_path / "run", "alarm")]
    assert len(alarms) == 1 and "profile of rank 0 not written" in alarms[0]


def test_the_clock_knows_where_an_error_happened():
    clock = StepClock(torch.device("cpu"))
    with clock.phase("forward"):
        pass
    with pytest.raises(ZeroDivisionError), clock.phase("backward"):
        raise ZeroDivisionError
    assert clock.stage == "backward"
    assert clock.take().keys() == {"forward"} and clock.take() == {}


def test_spans_are_joined_and_cut():
    spans = union([(4, 5), (0, 2), (1, 3), (3, 3.5), (8, 9)])
    assert spans.tolist() == [[0, 3.5], [4, 5], [8, 9]]
    others = np.array([[1.0, 2.0], [4.5, 8.5]])
    assert common(spans, others).tolist() == [[1, 2], [4.5, 5], [8, 8.5]]
    assert minus(spans, others).tolist() == [[0, 1], [2, 3.5], [4, 4.5], [8.5, 9]]
    assert minus(spans, union([])).tolist() == spans.tolist()
    assert length(spans) == 5.5 and length(union([])) == 0


def test_only_communication_that_nothing_runs_beside_is_exposed():
    timeline = Timeline(
        10.0,
        {},
        communication=union([(1, 4), (6, 7)]),
        work=union([(0, 2), (3, 5)]),
        allocated=np.zeros((0, 2)),
    )
    assert timeline.exposed().tolist() == [[2, 3], [6, 7]]


def _summary(*own_s: float) -> Summary:
    """Ranks that wait until all have done their own work."""
    whole = max(own_s)
    ranks = tuple(
        RankProfile(
            rank, whole, dict.fromkeys(PARTS, 0.0) | {"backward": own, "communication": whole - own}, 0.0, 0
        )
        for rank, own in enumerate(own_s)
    )
    return Summary(20, 24, "cpu", 100, ranks, (), [], [])


def test_the_rank_that_others_wait_for_is_named():
    assert "others wait for rank 2 (1.50 times their work)" in _summary(2, 2, 3, 2).gist
    assert "no rank lags" in _summary(2, 2.1, 2, 2.05).gist
    assert "rank" not in _summary(2).gist


def test_utilisation_is_arithmetic_by_peak(monkeypatch):
    monkeypatch.setattr("allsight.engine.profiler.utilisation.peak_flops", lambda *_: 1e6)
    trainer = Trainer(small_run())
    step = next(iter(trainer._make_loader()))
    found = Utilisation(small_run(), trainer.tasks, trainer.ranks).of(step, 0.5)
    rows = sum(step.sizes.values())
    products = sum(p.numel() for p in _used(trainer, step) if p.ndim == 2)
    first = next(p for p in trainer.model.parameters() if p.ndim == 2)
    # Two operations a weight in the forward, four in the backward; inputs have no gradient.
    assert found == pytest.approx(rows * (6 * products - 2 * first.numel()) / 0.5 / 1e6)


def _used(trainer, step):
    with torch.enable_grad():
        losses, _ = trainer._forward(step, step.batches[step.tasks[0]][0])
        sum(losses.values()).backward()
    return [p for p in trainer.model.parameters() if p.grad is not None]


def test_the_peak_of_half_precision_gpus_is_that_of_their_data_sheet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    device = torch.device("cuda", 0)
    assert peak_flops(device, "bf16") == 989e12 and peak_flops(device, "fp32") == 67e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some New Thing")
    assert peak_flops(device, "bf16") is None
