"""Half precision, Muon, and steps that do not fit into memory."""

import json

import pytest
import torch
from blocks_run import Blocks, blocks_run
from small_run import small_run

from allsight.backbones import InternImage
from allsight.config import Mixture, replace
from allsight.engine.budget.savings import savings
from allsight.engine.config import RunConfig
from allsight.engine.loss_scale import LossScale
from allsight.engine.muon import Muon
from allsight.engine.optim import AdamW
from allsight.engine.parallel.config import ParallelConfig
from allsight.engine.parameter_groups import parameter_groups
from allsight.engine.trainer import RunFailed, Trainer
from allsight.launch.plan import plan_run
from allsight.models import MultiHead
from allsight.models.base import model_for_tasks
from allsight.tasks import Classification
from allsight.tasks.base import build_tasks
from allsight.types import Batch


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
    trainer._updater.loss_scale.value = 2.0**22
    steps = iter(trainer)
    before = _weights(trainer)
    assert next(steps).skipped and all(torch.equal(t, before[n]) for n, t in _weights(trainer).items())
    while next(steps).skipped:
        pass
    trainer.close()
    notes = [event["text"] for event in _events(tmp_path / "run", "note")]
    assert notes and all("overflowed float16" in text for text in notes)
    assert trainer._updater.loss_scale.value == 2.0 ** (22 - len(notes))
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
    assert again._updater.loss_scale.to_tensor().tolist() == whole._updater.loss_scale.to_tensor().tolist()
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
        # What is only counted needs no memory.
        if type(batch.inputs["vector"]) is torch.Tensor and self.training and len(batch) > rows:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        return real(self, batch, state)

    monkeypatch.setattr(Blocks, "forward", forward)


def test_a_step_that_does_not_fit_is_run_again_in_smaller_parts(tmp_path, monkeypatch):
    expected = _trained(replace(blocks_run(), {"train.accumulate": 4}))
    _tight(monkeypatch, 2)
    trainer = _trained(replace(blocks_run(), {"train.recover_memory": True}), folder=tmp_path / "run")
    notes = _events(tmp_path / "run", "note")
    assert [event["values"]["accumulate"] for event in notes] == [2, 4]
    assert "out of memory in the forward pass of step 0" in notes[0]["text"]
    assert trainer.config.train.accumulate == 4
    for name, tensor in _weights(expected).items():
        assert torch.equal(_weights(trainer)[name], tensor), name


def test_parts_that_cannot_be_halved_end_the_run_in_one_line(monkeypatch):
    _tight(monkeypatch, 0)
    trainer = Trainer(replace(blocks_run(), {"train.recover_memory": True}))
    with pytest.raises(RunFailed, match=r"out of memory .* cannot be halved: .*accumulate 16"):
        trainer.fit()


def test_lack_of_memory_names_stage_batch_and_what_saves_most(monkeypatch, tmp_path):
    _tight(monkeypatch, 2)
    trainer = Trainer(blocks_run(), folder=tmp_path / "run")
    with pytest.raises(RunFailed) as caught:
        trainer.fit()
    trainer.close()
    text = str(caught.value)
    assert "out of memory in the forward pass of step 0 on rank 0 with micro-batches of 8 of" in text
    assert "train.accumulate=2 (saves about" in text and text.count("saves about") == 2 and "\n" not in text
    assert text in _events(tmp_path / "run", "alarm")[0]["text"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("torch.Tensor.backward", "in the backward pass of step 0 on rank 0 with micro-batches of 8 of"),
        ("torch.optim.SGD.step", "in the optimiser's update of step 0 .*; set optim.ema_decay=null"),
        (
            "allsight.engine.evaluator.Evaluator.evaluate",
            r"in evaluation of step 12 on rank 0; set eval\.batch_size below 8",
        ),
    ],
)
def test_lack_of_memory_says_where_it_happened(monkeypatch, where, expected):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(where, fail)
    with pytest.raises(RunFailed, match=f"out of memory {expected}"):
        Trainer(blocks_run()).fit()


@pytest.mark.slow
def test_savings_are_what_the_plan_counts():
    task = Classification.Config(data="imagefolder:none", num_classes=10, batch_size=16, size_px=64)
    config = RunConfig(
        name="x",
        model=MultiHead.Config(
            backbone=InternImage.Config(channels=32, depths=(2, 1), groups=(1, 2), out_stages=(1,))
        ),
        tasks=Mixture(a=task),
        optim=AdamW.Config(ema_decay=0.9),
        parallel=ParallelConfig(strategy="ddp"),
    )
    tasks = build_tasks(config.tasks, None)
    batch = Batch("a", ("x",) * 16, {"image": torch.zeros(16, 3, 64, 64)}, {"label": torch.zeros(16).long()})
    found = {setting: saved for saved, setting in savings(config, tasks, [batch], 2)}
    path = "model.backbone.remat"
    assert list(found) == sorted(found, key=found.__getitem__, reverse=True)
    assert found.keys() >= {"train.accumulate=2", f"{path}=block", f"{path}=selective", "precision=bf16"}
    counted = [
        plan_run(replace(config, {path: kind}), gpus=2, kind="h100-80g").tasks["a"].activations
        for kind in ("none", "block")
    ]
    assert found[f"{path}=block"] == pytest.approx(counted[0](16) - counted[1](16), rel=0.1)
    assert found["train.accumulate=2"] == pytest.approx(counted[0](16) - counted[0](8), rel=0.1)
    parameters = sum(p.numel() for p in model_for_tasks(config.model, tasks).parameters())
    assert found["optim.ema_decay=null"] == 4 * parameters
    # Parameters, gradients, two moments and average halve; blocks that are gathered come on top.
    assert 0.5 * 5 * 4 * parameters > found["parallel.strategy=fsdp"] > 0
    assert not {"train.accumulate=2", "precision=bf16"} & {s for _, s in savings(config, tasks, [], 2)}


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def forward(self, batch, state=None):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Blocks, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Trainer(replace(blocks_run(), {"train.recover_memory": True})).fit()
