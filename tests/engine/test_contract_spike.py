"""Tasks as different as classification, captioning and a drive with state go through the same engine."""

import ast
from pathlib import Path

import pytest
import torch
from rank_run import result_of
from spike_run import spike_run

import allsight.engine
from allsight.config import build, dump, replace
from allsight.engine.config import RunConfig
from allsight.engine.trainer import Trainer


def test_three_kinds_of_task_learn_jointly():
    """The drive is the slowest to learn: its answer depends on the frame before."""
    trainer = Trainer(replace(spike_run(), {"schedule.steps": 240}))
    metrics = trainer.fit()
    trainer.close()
    for name, task in trainer.tasks.items():
        # Without its state the drive ends near 0.5 (see below), with it near 0.9.
        limit = 0.8 if name == "drive" else 0.95
        assert metrics[f"{name}/{task.main_metric()}"] >= limit, metrics


def test_the_drive_needs_its_state():
    """The same run whose memory is wiped each step does not learn the drive: so state does pass through."""
    alone = {
        "tasks.dots": None,
        "tasks.captions": None,
        "schedule.steps": 80,
        "model.route": {"drive": "driver"},
        "model.parts": {"driver": dump(spike_run().model.parts["driver"])},
    }
    trainer = Trainer(replace(spike_run(), alone))
    for _ in trainer:
        trainer._memory.restore({})
    assert trainer.evaluate()[f"drive/{trainer.tasks['drive'].main_metric()}"] < 0.7
    trainer.close()


@pytest.mark.parametrize("layout", ["one_task", "mixed_lanes"])
def test_the_spike_resumes_bit_for_bit(tmp_path, layout):
    config = replace(
        spike_run(layout), {"schedule.steps": 40, "checkpoint.every_steps": 17, "eval.max_samples": 12}
    )
    whole = Trainer(config)
    whole.fit()
    first = Trainer(config, folder=tmp_path / "run")
    for step in first:
        if step.number == 22:
            break
    first.close()
    again = Trainer(config, folder=tmp_path / "run", resume=True)
    assert again.step == 17
    again.fit()
    again.close()
    expected = result_of(whole)
    for name, tensor in result_of(again).items():
        assert torch.equal(tensor, expected[name]), name


def test_worker_processes_change_nothing():
    config = replace(spike_run("mixed_lanes"), {"schedule.steps": 12, "eval.max_samples": 12})
    alone = Trainer(config)
    expected_metrics = alone.fit()
    with_workers = Trainer(replace(config, {"data.workers": 2}))
    assert with_workers.fit() == expected_metrics
    with_workers.close()
    expected = result_of(alone)
    for name, tensor in result_of(with_workers).items():
        assert torch.equal(tensor, expected[name]), name


def test_the_run_is_plain_data():
    config = spike_run("mixed_lanes")
    assert build(RunConfig, dump(config), trust=True) == config


def test_the_engine_names_no_task_and_no_kind_of_model():
    """If anything had to be special-cased here, the contract would be wrong."""
    for file in Path(allsight.engine.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                room = node.module.split(".")
                if room[:2] in (["allsight", "tasks"], ["allsight", "models"]):
                    # Scores, probes and the contract of tasks that can be asked are no tasks, and what finds
                    # the backbone in any model is none.
                    allowed = ["base"], ["metrics"], ["probes"], ["asking"], ["features"]
                    assert room[2:] in allowed, f"{file.name} imports {node.module}"
