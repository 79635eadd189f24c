"""Norms of gradients and updates of each part: what a part is, the figures, the diary and the report."""

import json

import pytest
import torch
from small_run import small_run

from allsight.backbones import InternImage
from allsight.config import replace
from allsight.engine.norms import PartNorms
from allsight.engine.trainer import Trainer
from allsight.models import Classifier, MultiHead, model_for_tasks
from allsight.tasks import Classification
from allsight.view.record import read_run
from allsight.view.report import render

SMALL = dict(channels=8, depths=(1, 1), groups=(1, 2), out_stages=(0, 1))


def task(classes=3):
    return {"t": Classification(Classification.Config(num_classes=classes), name="t", root=None)}


def test_parts_are_stem_stages_downsamplings_and_heads():
    backbone = InternImage.Config(**SMALL)
    inner = ("stem", "stages.0", "stages.1", "downsamples.0")
    multi = model_for_tasks(MultiHead.Config(backbone=backbone), task())
    assert PartNorms(multi).parts == (*(f"backbone.{name}" for name in inner), "heads.t")
    single = model_for_tasks(Classifier.Config(backbone=backbone, num_classes=3), task())
    names = (*(f"backbone.{name}" for name in inner), "pool", "head")
    assert PartNorms(single).parts == tuple(f"classifier.{name}" for name in names)


def test_every_trained_parameter_is_in_one_part_and_frozen_ones_in_none():
    backbone = InternImage.Config(**SMALL, frozen_stages=1)
    model = model_for_tasks(MultiHead.Config(backbone=backbone), task())
    norms = PartNorms(model)
    assert norms.parts == ("backbone.stages.1", "heads.t")
    held = [p for part in norms._parts.values() for p in part]
    assert {*held} == {p for p in model.parameters() if p.requires_grad} and len(held) == len({*held})


def test_figures_are_those_of_the_step():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, 4.0]])
    model.weight.grad = torch.tensor([[0.0, 2.0]])
    norms = PartNorms(model)
    norms.before()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert norms.after() == pytest.approx({"model/gradient": 2.0, "model/weight": 5.0, "model/update": 0.2})


def test_parts_that_a_step_did_not_use_are_left_out():
    norms = PartNorms(torch.nn.Linear(2, 1))
    norms.before()
    assert norms.after() == {}


def norms_of(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "norms"]


@pytest.mark.parametrize(("every", "steps"), [(4, [0, 4, 8]), (None, [])])
def test_a_run_notes_them_at_their_period_and_nothing_else_changes(tmp_path, every, steps):
    config = replace(small_run(), {"train.norms_every": every})
    trainer = Trainer(config, folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    assert [event["step"] for event in norms_of(tmp_path / "run")] == steps
    without = Trainer(replace(config, {"train.norms_every": None}))
    without.fit()
    for (name, own), other in zip(
        trainer.model.state_dict().items(), without.model.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other), name


def test_all_parts_together_have_the_gradient_norm_of_the_step(tmp_path):
    config = replace(small_run(), {"train.norms_every": 1, "optim.ema_decay": None})
    trainer = Trainer(config, folder=tmp_path / "run")
    whole = {step.number: step.grad_norm for step in trainer}
    trainer.close()
    for event in norms_of(tmp_path / "run"):
        squares = [value**2 for name, value in event["values"].items() if name.endswith("/gradient")]
        assert sum(squares) ** 0.5 == pytest.approx(whole[event["step"]], rel=1e-5)


def test_the_report_has_a_chart_of_each_part(tmp_path):
    trainer = Trainer(replace(small_run(), {"train.norms_every": 2}), folder=tmp_path / "run")
    trainer.fit()
    trainer.close()
    record = read_run(tmp_path / "run")
    assert {"body", "heads.a", "heads.b"} <= {part.replace("model", "") for part in record.norms}
    page = render(record)
    assert "gradients and updates by part" in page
    for part in record.norms:
        assert part in page
