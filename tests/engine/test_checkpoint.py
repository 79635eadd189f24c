"""Checkpoints are whole or not there, and say what is wrong with them."""

import os
import shutil

import pytest
import torch

from allsight.engine.checkpoint import (
    find_fault,
    list_checkpoints,
    load_tensors,
    newest_whole,
    prune,
    read_best,
    save_checkpoint,
    write_best,
)
from allsight.engine.distributed import Ranks
from allsight.types import CheckpointError

TENSORS = {
    "model/layer.weight": torch.randn(3, 4, dtype=torch.float64),
    "optim/layer.weight/step": torch.tensor(7.0),
    "memory/drive/0/bev": torch.randn(2, 5),
    "run/ledger": torch.arange(9, dtype=torch.uint8),
}


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    saved = save_checkpoint(tmp_path, 12, TENSORS, Ranks())
    loaded = load_tensors(saved.path, lambda key: True)
    assert loaded.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)


def test_only_wanted_tensors_are_read(tmp_path):
    saved = save_checkpoint(tmp_path, 12, TENSORS, Ranks())
    assert set(load_tensors(saved.path, lambda key: key.startswith("model/"))) == {"model/layer.weight"}


def _flip_a_byte(path):
    file = next(path.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _remove_mark(path):
    (path / "COMPLETE").unlink()


def _truncate(path):
    file = next(path.glob("*.distcp"))
    os.truncate(file, file.stat().st_size - 1)


def _lose_a_file(path):
    next(path.glob("*.distcp")).unlink()


def _tear_manifest(path):
    (path / "manifest.json").write_text('{"step": 2, "fil')


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_flip_a_byte, "checksum"),
        (_remove_mark, "interrupted"),
        (_truncate, "bytes in place of"),
        (_lose_a_file, "missing"),
        (_tear_manifest, "manifest"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage, expected):
    save_checkpoint(tmp_path, 1, TENSORS, Ranks())
    newest = save_checkpoint(tmp_path, 2, TENSORS, Ranks())
    damage(newest.path)
    told = []
    found = newest_whole(tmp_path, tell=told.append)
    assert found is not None and found.step == 1
    assert len(told) == 1 and "step-00000002" in told[0] and expected in told[0]


def test_leftovers_of_a_killed_save_are_no_checkpoints(tmp_path):
    saved = save_checkpoint(tmp_path, 1, TENSORS, Ranks())
    shutil.copytree(saved.path, tmp_path / ".tmp-step-00000002")
    assert [c.step for c in list_checkpoints(tmp_path)] == [1]
    assert save_checkpoint(tmp_path, 2, TENSORS, Ranks()).step == 2
    assert find_fault(tmp_path / "step-00000002") is None


def test_a_save_that_fails_leaves_older_ones_and_nothing_half_written(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, TENSORS, Ranks())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, TENSORS, Ranks())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    assert find_fault(tmp_path / "step-00000001") is None


def test_a_full_disk_is_called_so_whatever_pytorch_calls_it(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    monkeypatch.setattr("allsight.engine.checkpoint.dcp.save", full)
    with pytest.raises(OSError, match="unexpected pos"):
        save_checkpoint(tmp_path, 2, TENSORS, Ranks())
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("allsight.engine.checkpoint.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"no space left on the disk \(0 MB free, 0 MB needed\)"):
        save_checkpoint(tmp_path, 2, TENSORS, Ranks())


def test_prune_keeps_the_newest_and_the_named(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, TENSORS, Ranks())
    prune(tmp_path, 2, keep={1})
    assert [c.step for c in list_checkpoints(tmp_path)] == [1, 3, 4]


def test_best_is_remembered(tmp_path):
    assert read_best(tmp_path) is None
    write_best(tmp_path, 300, "main", 0.5)
    assert read_best(tmp_path) == (300, 0.5)
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json"):
        read_best(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"files": 3}', '{"files": {"a": 3}}'])
def test_a_damaged_manifest_is_a_fault_and_no_crash(tmp_path, text):
    saved = save_checkpoint(tmp_path, 12, TENSORS, Ranks())
    (saved.path / "manifest.json").write_text(text)
    assert find_fault(saved.path).startswith("manifest.json cannot be read")


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"step": "x", "value": 1}'])
def test_a_damaged_note_of_the_best_is_a_checkpoint_error(tmp_path, text):
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json: .*weights=last"):
        read_best(tmp_path)


def test_unreadable_checkpoint_is_a_checkpoint_error(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(CheckpointError, match="step-00000001"):
        load_tensors(tmp_path / "step-00000001", lambda key: True)
