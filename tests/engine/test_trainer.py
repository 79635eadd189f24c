"""The loop: what a step changes, what it must not, and that a run can be cut anywhere."""

import json
from dataclasses import replace as with_changes

import pytest
import torch
from small_run import Signs, Trunk, small_run

from allsight.config import ConfigError, Mixture, replace
from allsight.engine.checkpoint import read_best, save_checkpoint
from allsight.engine.config import TrainConfig
from allsight.engine.optim import AdamW
from allsight.engine.run_folder import read_run_config
from allsight.engine.trainer import RunFailed, Trainer


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def run(config, **options) -> Trainer:
    trainer = Trainer(config, **options)
    for _ in trainer:
        pass
    trainer.close()
    return trainer


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def assert_same_weights(a: Trainer, b: Trainer, limit: float) -> None:
    theirs = weights_of(b)
    for name, tensor in weights_of(a).items():
        assert relative(tensor, theirs[name]) <= limit, name


def events_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_run_learns_and_says_what_it_did(tmp_path):
    config = replace(small_run(), {"schedule.steps": 60, "optim.lr": 0.5, "eval.every_steps": 30})
    trainer = Trainer(config, folder=tmp_path / "run")
    steps = list(trainer)
    assert [step.number for step in steps] == list(range(60))
    assert trainer.evaluate()["a/top1"] > 0.8
    assert steps[29].metrics is not None and steps[28].metrics is None
    kinds = {event["kind"] for event in events_of(tmp_path / "run")}
    assert kinds >= {"system", "train", "eval", "checkpoint"}
    per_step = [e for e in events_of(tmp_path / "run") if e["kind"] == "train" and e["task"] is None]
    assert len(per_step) == 60
    result = {"loss", "lr", "grad_norm", "seconds", "wait_s", "samples", "samples_per_s"}
    split = {"forward_s", "backward_s", "exchange_s", "optimiser_s"}
    assert set(per_step[0]["values"]) == result | split | {"peak_bytes", "mfu"}
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"resolved.yaml", "environment.json", "classes.json", "events.jsonl", "checkpoints"}
    trainer.close()


def test_same_seed_gives_same_bits_with_or_without_a_folder(tmp_path):
    a, b = run(small_run()), run(small_run(), folder=tmp_path / "run")
    assert_same_weights(a, b, 0.0)
    other = run(replace(small_run(), {"seed": 1}))
    assert relative(weights_of(other)["body.0.weight"], weights_of(a)["body.0.weight"]) > 1e-3


@pytest.mark.parametrize("layout", ["one_task", "mixed_batch", "mixed_lanes"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulation_changes_nothing(layout, clip):
    lanes = 1 if layout == "one_task" else 2
    base = replace(small_run(), {"sampling.layout": layout, "sampling.lanes": lanes, "optim.clip_norm": clip})
    whole = run(base)
    split = run(replace(base, {"train.accumulate": 2}))
    assert_same_weights(whole, split, 1e-12)


def test_after_step_runs_once_per_step_that_happened():
    trainer = run(replace(small_run(), {"train.accumulate": 2}))
    assert int(trainer.model.calls) == 12


def test_an_unused_head_is_not_moved():
    config = replace(
        small_run(optim=AdamW.Config(lr=0.1, weight_decay=0.1)),
        {"tasks.b.share": 0.0001, "schedule.steps": 3},
    )
    trainer = Trainer(config)
    before = weights_of(trainer)
    drawn = {task for step in trainer for task in step.losses}
    assert drawn == {"a"}
    assert torch.equal(weights_of(trainer)["heads.b.weight"], before["heads.b.weight"])
    assert not torch.equal(weights_of(trainer)["heads.a.weight"], before["heads.a.weight"])


@pytest.fixture
def poisoned():
    """Task a's sample 5 is NaN; batch norm makes the forward pass itself touch state."""
    tasks = Mixture(a=Signs.Config(batch_size=8, poison=(5,)), b=Signs.Config(batch_size=4, reader_seed=7))
    return small_run(
        tasks=tasks, model=Trunk.Config(batch_norm=True), train=TrainConfig(max_skipped_in_a_row=3)
    )


def test_a_step_that_is_not_finite_touches_nothing(poisoned, tmp_path):
    trainer = Trainer(poisoned, folder=tmp_path / "run")
    before, average, skipped = weights_of(trainer), None, 0
    for step in trainer:
        after = weights_of(trainer)
        if step.skipped:
            skipped += 1
            assert all(torch.equal(after[name], before[name]) for name in after)
            assert average is None or all(
                torch.equal(a, b)
                for a, b in zip(average, trainer._updater.ema.averages.values(), strict=True)
            )
        before, average = after, [tensor.clone() for tensor in trainer._updater.ema.averages.values()]
    trainer.close()
    assert skipped >= 1
    assert all(bool(tensor.isfinite().all()) for tensor in weights_of(trainer).values())
    alarms = [event for event in events_of(tmp_path / "run") if event["kind"] == "alarm"]
    assert len(alarms) == skipped
    assert "non-finite loss in task 'a'" in alarms[0]["text"] and "vectors/5" in alarms[0]["text"]


def test_too_many_skipped_steps_stop_the_run(poisoned):
    config = replace(poisoned, {"tasks.a.poison": list(range(48)), "tasks.b": None})
    with pytest.raises(RunFailed, match=r"3 steps in a row were not finite.*optim\.lr"):
        run(config)


def _names_a_sample(event):
    return event["kind"] == "data" and event["text"] != ""


def test_what_data_cost_is_noted_for_each_task_and_step(tmp_path):
    run(replace(small_run(), {"schedule.steps": 6}), folder=tmp_path / "run")
    events = events_of(tmp_path / "run")
    drawn = {(e["step"], e["task"]) for e in events if e["kind"] == "train" and e["task"] is not None}
    costs = {(e["step"], e["task"]): e["values"] for e in events if e["kind"] == "data"}
    assert set(costs) == drawn and len(drawn) >= 6
    for values in costs.values():
        noted = {"samples", "read_s", "transform_s", "collate_s", "bytes", "wait_s", "texts_cut"}
        assert set(values) == noted
        assert values["samples"] > 0 and values["bytes"] > 0


def test_broken_samples_are_replaced_counted_and_named_once(tmp_path):
    config = replace(
        small_run(),
        {"tasks.a.broken": [3], "data.max_corrupt_fraction": 0.5, "tasks.b": None, "schedule.steps": 18},
    )
    run(config, folder=tmp_path / "run")
    named = [event for event in events_of(tmp_path / "run") if _names_a_sample(event)]
    assert len(named) == 1
    assert (
        named[0]["task"] == "a"
        and "vectors/3" in named[0]["text"]
        and "broken on purpose" in named[0]["text"]
    )


def test_too_many_broken_samples_stop_the_run():
    config = replace(
        small_run(), {"tasks.a.broken": list(range(12)), "data.max_corrupt_fraction": 0.1, "tasks.b": None}
    )
    with pytest.raises(RunFailed, match=r"data\.max_corrupt_fraction"):
        run(config)


def test_validation_samples_that_cannot_be_read_are_named_and_too_many_stop_the_run(tmp_path):
    config = replace(small_run(), {"tasks.a.broken_val": (3, 5), "data.max_corrupt_fraction": 0.05})
    run(config, folder=tmp_path / "some")
    named = [e["text"] for e in events_of(tmp_path / "some") if _names_a_sample(e)]
    assert [text.split(":")[0] for text in named] == ["vectors/3", "vectors/5"]
    assert all(text.endswith("left out of the score") for text in named)
    with pytest.raises(
        RunFailed, match=r"task 'a': 2 of 48 validation samples .*'vectors/3': broken on purpose"
    ):
        run(replace(config, {"data.max_corrupt_fraction": 0.01}))


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("cut", [4, 8])
def test_resume_continues_bit_for_bit(tmp_path, optim, cut):
    config = small_run(model=Trunk.Config(batch_norm=True, dropout=0.3))
    if optim == "adamw":
        config = replace(config, {"optim": AdamW.Config(lr=0.01, ema_decay=0.9)})
    whole = run(config)
    first = Trainer(config, folder=tmp_path / "run")
    for step in first:
        if step.number == cut:
            break
    first.close()
    again = run(config, folder=tmp_path / "run", resume=True)
    assert_same_weights(whole, again, 0.0)
    for name, average in whole._updater.ema.averages.items():
        assert torch.equal(average, again._updater.ema.averages[name]), name
    restarts = [event for event in events_of(tmp_path / "run") if event["kind"] == "restart"]
    assert [event["values"]["from_step"] for event in restarts] == [cut]


def test_resume_before_every_task_was_drawn(tmp_path):
    """An optimiser has no state for a head that no step used; a checkpoint of then must load all the same."""
    tasks = Mixture(
        a=Signs.Config(batch_size=8), b=Signs.Config(batch_size=4, share=((0, 0.0), (5, 0.0), (9, 1.0)))
    )
    config = small_run(tasks=tasks, optim=AdamW.Config(lr=0.01, ema_decay=0.9))
    whole = run(config)
    first = Trainer(config, folder=tmp_path / "run")
    for step in first:
        if step.number == 4:
            break
    first.close()
    assert_same_weights(whole, run(config, folder=tmp_path / "run", resume=True), 0.0)


def test_a_full_disk_costs_a_checkpoint_not_the_run(tmp_path, monkeypatch):
    config = replace(small_run(), {"checkpoint.asynchronous": False})
    trainer = Trainer(config, folder=tmp_path / "run")
    real = __import__("os").fsync
    state = {"full": False}

    def fsync(descriptor):
        if state["full"]:
            raise OSError(28, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.os.fsync", fsync)
    for step in trainer:
        state["full"] = step.number in (5, 6, 7)
    trainer.close()
    alarms = [event["text"] for event in events_of(tmp_path / "run") if event["kind"] == "alarm"]
    assert len(alarms) == 1 and "No space left" in alarms[0] and "step 8" in alarms[0]
    assert trainer.step == 12
    assert_same_weights(trainer, run(config), 0.0)


def test_a_best_checkpoint_that_could_not_be_written_is_not_the_best(tmp_path, monkeypatch):
    """Else the weights of the run would be those of a folder that is not there."""
    changes = {"eval.every_steps": 4, "checkpoint.every_steps": None, "checkpoint.asynchronous": False}
    trainer = Trainer(replace(small_run(), changes), folder=tmp_path / "run")
    scores = iter([0.5, 0.9, 0.6])
    monkeypatch.setattr(trainer, "_main_metric", lambda metrics: next(scores))
    full: list[bool] = []

    def save(*args):
        if full:
            raise OSError(28, "No space left on device")
        return save_checkpoint(*args)

    monkeypatch.setattr("allsight.engine.saving.save_checkpoint", save)
    for step in trainer:
        full[:] = [True] if step.number == 6 else []
        best = read_best(tmp_path / "run" / "checkpoints")
        if step.number >= 4:
            assert best == ((4, 0.5) if step.number < 11 else (12, 0.6))
    trainer.close()
    assert trainer.saved_step == trainer.step == 12


def test_pictures_that_cannot_be_kept_cost_an_alarm_not_the_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("allsight.engine.predictions.write_text", full)
    trained = run(small_run(), folder=tmp_path / "run")
    alarms = [event for event in events_of(tmp_path / "run") if event["kind"] == "alarm"]
    assert [event["task"] for event in alarms] == ["a", "b"]
    assert all("not kept" in event["text"] and "No space" in event["text"] for event in alarms)
    assert trained.step == 12


def test_an_existing_run_is_refused(tmp_path):
    run(small_run(), folder=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"a run of this name exists; resume it with --resume"):
        Trainer(small_run(), folder=tmp_path / "run")
    with pytest.raises(ConfigError, match="no run to resume"):
        Trainer(small_run(), folder=tmp_path / "other", resume=True)


def test_a_run_remembers_where_its_data_lay_wherever_it_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Trainer(replace(small_run(), {"data.root": "pictures"}), folder=tmp_path / "run").close()
    assert read_run_config(tmp_path / "run").data.root == str(tmp_path / "pictures")


def test_a_run_does_not_go_on_with_settings_that_would_make_it_another(tmp_path):
    run(small_run(), folder=tmp_path / "run")
    for change in ({"optim.lr": 0.2}, {"seed": 1}, {"tasks.b": None}, {"schedule.steps": 20}):
        with pytest.raises(ConfigError, match=rf"config\.{next(iter(change))}.*: the run was started with"):
            Trainer(replace(small_run(), change), folder=tmp_path / "run", resume=True)
    again = replace(small_run(), {"eval.pictures": 1, "train.accumulate": 2})
    run(again, folder=tmp_path / "run", resume=True)


def test_the_loop_may_be_left_and_entered_again():
    whole = run(small_run())
    trainer = Trainer(small_run())
    for step in trainer:
        if step.number == 3:
            break
    assert [step.number for step in trainer] == list(range(4, 12))
    assert_same_weights(whole, trainer, 0.0)


def test_workers_change_nothing():
    whole = run(small_run())
    assert_same_weights(whole, run(replace(small_run(), {"data.workers": 2})), 0.0)


def test_losses_are_means_over_the_global_batch():
    """The reported losses of the first step equal the task's own losses on the whole batch."""
    config = replace(small_run(), {"tasks.b": None, "train.accumulate": 4, "optim.clip_norm": None})
    trainer = Trainer(config)
    start = Trainer(config)
    step = next(iter(trainer))
    batches = next(iter(start._make_loader())).batches["a"]
    whole = start.tasks["a"].collate(
        [start.tasks["a"].reader("train")[int(name.split("/")[1])] for b in batches for name in b.ids]
    )
    whole = with_changes(whole, task="a")
    expected = start.tasks["a"].loss(start.model(whole)[0], whole)
    for name, value in expected.items():
        assert step.losses["a"][name] == pytest.approx(float(value.detach()), rel=1e-12)
