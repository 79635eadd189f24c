"""After a power cut at any moment of a save there is a whole checkpoint."""

import shutil

import pytest
import torch
from recorded_disk import RecordedDisk

from allsight.engine.checkpoint import (
    find_fault,
    list_checkpoints,
    load_tensors,
    newest_whole,
    prune,
    save_checkpoint,
)
from allsight.engine.distributed import Ranks


def _tensors(step: int) -> dict[str, torch.Tensor]:
    return {
        "model/weight": torch.full((5, 3), float(step)),
        "optim/weight/exp_avg": torch.arange(4.0) * step,
        "run/step": torch.tensor(step),
    }


@pytest.mark.parametrize("keeps_names", [True, False], ids=["names kept", "names lost"])
def test_every_prefix_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch, keeps_names):
    live, start = tmp_path / "live", tmp_path / "start"
    for step in (1, 2):
        save_checkpoint(live, step, _tensors(step), Ranks())
    shutil.copytree(live, start)
    disk = RecordedDisk(live)
    with disk.recording(monkeypatch):
        save_checkpoint(live, 3, _tensors(3), Ranks())
        prune(live, 2, keep=set())
        # A step that was run again.
        save_checkpoint(live, 3, _tensors(3), Ranks())
    kinds = [operation.kind for operation in disk.operations]
    assert {"write", "sync", "rename", "mkdir", "remove", "create"} <= set(kinds)
    loaded = []
    for count in range(len(kinds) + 1):
        if kinds[count - 1 : count] == ["write"]:
            continue  # What is not synchronised is lost, so this is as the one before.
        folder = tmp_path / "after"
        shutil.rmtree(folder, ignore_errors=True)
        disk.after(count, start, folder, keeps_names=keeps_names)
        found = newest_whole(folder)
        assert found is not None, f"nothing to load after operation {count}"
        tensors = load_tensors(found.path, lambda key: True)
        assert all(torch.equal(tensors[key], value) for key, value in _tensors(found.step).items())
        loaded.append(found.step)
    assert loaded == sorted(loaded) and (loaded[0], loaded[-1]) == (2, 3)


def test_a_power_cut_in_the_record_does_harm_where_nothing_was_synchronised(tmp_path, monkeypatch):
    """Else the test above could not fail."""
    live, start = tmp_path / "live", tmp_path / "start"
    live.mkdir()
    shutil.copytree(live, start)
    disk = RecordedDisk(live)
    monkeypatch.setattr("allsight.engine.checkpoint.os.fsync", lambda descriptor: None)
    with disk.recording(monkeypatch):
        disk_sync = [op for op in disk.operations if op.kind == "sync"]
        save_checkpoint(live, 1, _tensors(1), Ranks())
    disk.operations = [op for op in disk.operations if op.kind != "sync"]
    assert not disk_sync
    disk.after(len(disk.operations), start, tmp_path / "after", keeps_names=True)
    assert [find_fault(saved.path) is None for saved in list_checkpoints(tmp_path / "after")] == [False]
