"""Half precision, Muon, and steps that do not fit into memory."""

import json

import pytest
import torch
from blocks_run import Blocks, blocks_run
from small_run import small_run

from allsight.config import replace
from allsight.engine.loss_scale import LossScale
from allsight.engine.muon import Muon
from allsight.engine.parameter_groups import parameter_groups
from allsight.engine.trainer import RunFailed, Trainer


def _events(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def _trained(config, **options):
    trainer = Trainer(config, **options)
    trainer.fit()
    trainer.close()
    return trainer


def _weights(trainer):
    return {name: t.clone() for name, t in trainer.model.state_dict().items()}


def test_float16_learns_as_float32_does():
    exact = _trained(replace(small_run(), {"precision": "fp32", "tasks.b": None}))
    half = _trained(replace(small_run(), {"precision": "fp16", "tasks.b": None}))
    for name, tensor in exact.model.state_dict().items():
        assert half.model.state_dict()[name].dtype is tensor.dtype
        torch.testing.assert_close(half.model.state_dict()[name], tensor, rtol=0.05, atol=0.01)


def test_an_overflow_skips_the_step_halves_the_scale_and_is_no_alarm(tmp_path):
    trainer = Trainer(replace(small_run(), {"precision": "fp16"}), folder=tmp_path / "run")
    trainer._loss_scale.value = 2.0**22
    steps = iter(trainer)
    before = _weights(trainer)
    assert next(steps).skipped and all(torch.equal(t, before[n]) for n, t in _weights(trainer).items())
    while next(steps).skipped:
        pass
    trainer.close()
    notes = [event["text"] for event in _events(tmp_path / "run", "note")]
    assert notes and all("overflowed float16" in text for text in notes)
    assert trainer._loss_scale.value == 2.0 ** (22 - len(notes))
    assert not _events(tmp_path / "run", "alarm")


def test_the_scale_grows_after_many_clean_steps_and_is_kept_in_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("allsight.engine.loss_scale._GROWS_AFTER", 5)
    config = replace(small_run(), {"precision": "fp16"})
    scale = LossScale(enabled=True)
    for _ in range(11):
        scale.update(is_finite=True)
    assert scale.value == 2.0**18
    whole = _trained(config)
    first = Trainer(config, folder=tmp_path / "run")
    for step in first:
        if step.number == 7:
            break
    first.close()
    again = _trained(config, folder=tmp_path / "run", resume=True)
    assert again._loss_scale.to_tensor().tolist() == whole._loss_scale.to_tensor().tolist()
    assert all(torch.equal(t, _weights(whole)[name]) for name, t in _weights(again).items())


def test_a_scale_that_is_off_changes_nothing():
    scale = LossScale(enabled=False)
    assert (scale.update(is_finite=False), scale.value) == (False, 1.0)


def test_muon_gets_the_matrices_of_blocks_and_adamw_the_rest():
    trainer = Trainer(replace(blocks_run(optim=Muon.Config(lr=0.01)), {"precision": "fp32"}))
    groups = Muon(Muon.Config()).sort(trainer.model, parameter_groups(trainer.model, Muon.Config()))
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    by = {names[id(p)]: group["by"] for group in groups for p in group["params"]}
    expected = {f"steps.{step}.{layer}.weight" for step in range(3) for layer in ("fc1", "fc2")}
    assert {name for name, one in by.items() if one == "muon"} == expected
    assert by.keys() == set(names.values())


def test_muon_learns_and_goes_on_from_a_checkpoint(tmp_path):
    config = replace(blocks_run(optim=Muon.Config(lr=0.02, ema_decay=0.9)), {"precision": "fp32"})
    whole = _trained(config)
    start = Trainer(config)
    assert not torch.equal(
        start.model.get_parameter("steps.0.fc1.weight"), _weights(whole)["steps.0.fc1.weight"]
    )
    first = Trainer(config, folder=tmp_path / "run")
    for step in first:
        if step.number == 7:
            break
    first.close()
    again = _trained(config, folder=tmp_path / "run", resume=True)
    assert all(torch.equal(t, _weights(whole)[name]) for name, t in _weights(again).items())


def _tight(monkeypatch, rows: int) -> None:
    """A machine on which more than `rows` rows do not fit."""
    real = Blocks.forward

    def forward(self, batch, state=None):
        if self.training and len(batch) > rows:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        return real(self, batch, state)

    monkeypatch.setattr(Blocks, "forward", forward)


def test_a_step_that_does_not_fit_is_run_again_in_smaller_parts(tmp_path, monkeypatch):
    expected = _trained(replace(blocks_run(), {"train.accumulate": 4}))
    _tight(monkeypatch, 2)
    trainer = _trained(replace(blocks_run(), {"train.recover_memory": True}), folder=tmp_path / "run")
    notes = _events(tmp_path / "run", "note")
    assert [event["values"]["accumulate"] for event in notes] == [2, 4]
    assert "out of memory in forward and backward of step 0" in notes[0]["text"]
    assert trainer.config.train.accumulate == 4
    for name, tensor in _weights(expected).items():
        assert torch.equal(_weights(trainer)[name], tensor), name


def test_parts_that_cannot_be_halved_end_the_run_in_one_line(monkeypatch):
    _tight(monkeypatch, 0)
    trainer = Trainer(replace(blocks_run(), {"train.recover_memory": True}))
    with pytest.raises(RunFailed, match=r"out of memory .* cannot be halved: .*accumulate 16"):
        trainer.fit()


def test_lack_of_memory_names_stage_batch_and_what_saves_most(monkeypatch):
    _tight(monkeypatch, 2)
    trainer = Trainer(blocks_run())
    with pytest.raises(RunFailed) as caught:
        trainer.fit()
    text = str(caught.value)
    assert "out of memory in forward and backward of step 0 on rank 0 with micro-batches of 8 of" in text
    assert "train.accumulate=2 (saves about" in text and text.count("saves about") == 2 and "\n" not in text


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def forward(self, batch, state=None):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Blocks, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Trainer(replace(blocks_run(), {"train.recover_memory": True})).fit()
