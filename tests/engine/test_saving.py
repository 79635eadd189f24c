"""Checkpoints while training goes on: nothing waits, nothing is lost, faults cost an alarm."""

import json
import threading

import pytest
import torch
from small_run import small_run

from allsight.config import replace
from allsight.engine.checkpoint import (
    find_fault,
    list_checkpoints,
    load_tensors,
    newest_whole,
    save_checkpoint,
)
from allsight.engine.trainer import Trainer


def _events(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def _weights(trainer):
    return {name: t.clone() for name, t in trainer.model.state_dict().items()}


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The writer is held until training is three steps further; what it writes is the state before them."""
    gate = threading.Event()

    def slow(*args):
        assert gate.wait(60)
        return save_checkpoint(*args)

    monkeypatch.setattr("allsight.engine.saving.save_checkpoint", slow)
    config = replace(small_run(), {"schedule.steps": 8, "checkpoint.every_steps": 4})
    trainer = Trainer(config, folder=tmp_path / "run")
    then = {}
    for step in trainer:
        if step.number == 3:
            then = _weights(trainer)
        if step.number == 6:
            assert not list_checkpoints(tmp_path / "run" / "checkpoints")
            gate.set()
    trainer.close()
    assert [c.step for c in list_checkpoints(tmp_path / "run" / "checkpoints")] == [4, 8]
    events = _events(tmp_path / "run", "checkpoint")
    assert [event["step"] for event in events] == [4, 8] and events[0]["values"]["bytes"] > 0
    (tmp_path / "run" / "checkpoints" / "step-00000008" / "COMPLETE").unlink()
    again = Trainer(config, folder=tmp_path / "run", resume=True)
    assert again.step == 4
    assert all(torch.equal(tensor, then[name]) for name, tensor in _weights(again).items())
    assert "step-00000008 cannot be used" in _events(tmp_path / "run", "alarm")[0]["text"]
    again.close()


def test_two_saves_are_never_written_at_once(tmp_path, monkeypatch):
    busy = threading.Lock()

    def alone(*args):
        assert busy.acquire(blocking=False), "a second save began before the first was done"
        try:
            return save_checkpoint(*args)
        finally:
            busy.release()

    monkeypatch.setattr("allsight.engine.saving.save_checkpoint", alone)
    trainer = Trainer(replace(small_run(), {"checkpoint.every_steps": 1}), folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    assert trainer.saved_step == 12 and not _events(tmp_path / "run", "alarm")


def test_beside_or_in_between_the_same_is_saved(tmp_path):
    folders = []
    for asynchronous in (True, False):
        folder = tmp_path / str(asynchronous)
        trainer = Trainer(replace(small_run(), {"checkpoint.asynchronous": asynchronous}), folder=folder)
        trainer.fit()
        trainer.close()
        found = newest_whole(folder / "checkpoints")
        folders.append(load_tensors(found.path, lambda key: True))
    assert folders[0].keys() == folders[1].keys()
    assert all(torch.equal(tensor, folders[1][key]) for key, tensor in folders[0].items())


def test_checkpoints_of_every_so_many_steps_stay(tmp_path):
    changes = {"checkpoint.every_steps": 1, "checkpoint.keep_last": 1, "checkpoint.keep_every": 5}
    trainer = Trainer(replace(small_run(), changes), folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    assert [c.step for c in list_checkpoints(tmp_path / "run" / "checkpoints")] == [5, 10, 12]


def test_whole_checkpoints_are_copied_to_a_store(tmp_path):
    store = tmp_path / "store"
    config = replace(small_run(), {"checkpoint.copy_to": f"file://{store}"})
    trainer = Trainer(config, folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    copies = list_checkpoints(store)
    assert [c.step for c in copies] == [4, 8, 12]
    assert all(find_fault(c.path) is None for c in copies)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(28, "No space left on device"),
        OSError(30, "Read-only file system"),
        OSError(5, "Input/output error"),
    ],
    ids=lambda fault: fault.args[1],
)
def test_what_cannot_be_written_costs_one_alarm_and_no_step(tmp_path, monkeypatch, fault):
    broken: list[bool] = []
    real = __import__("os").fsync

    def fsync(descriptor):
        if broken:
            raise fault
        return real(descriptor)

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.os.fsync", fsync)
    trainer = Trainer(small_run(), folder=tmp_path / "run")
    for step in trainer:
        if step.number == 4:
            trainer._saving.finish()
            broken.append(True)
        if step.number == 8:
            trainer._saving.finish()
            broken.clear()
    trainer.close()
    alarms = _events(tmp_path / "run", "alarm")
    assert len(alarms) == 1 and fault.args[1] in alarms[0]["text"] and alarms[0]["step"] == 8
    folder = tmp_path / "run" / "checkpoints"
    assert [c.step for c in list_checkpoints(folder)] == [4, 12]
    assert all(find_fault(c.path) is None for c in list_checkpoints(folder))
    assert sorted(p.name for p in folder.iterdir()) == ["best.json", "step-00000004", "step-00000012"]


def test_a_store_that_fails_costs_an_alarm_and_the_checkpoint_stays(tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = replace(small_run(), {"checkpoint.copy_to": str(tmp_path / "file" / "store")})
    trainer = Trainer(config, folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    assert all("not copied to" in event["text"] for event in _events(tmp_path / "run", "alarm"))
    assert len(_events(tmp_path / "run", "alarm")) == 3 and trainer.saved_step == 12
