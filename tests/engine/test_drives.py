"""Streams of drives through the engine: memory goes on from step to step, and begins anew with a scene."""

import pytest
import torch
from data.toy_drives import write_nuscenes

from allsight import Trainer
from allsight.config import replace
from allsight.recipes import find_config


@pytest.fixture
def trainer(tmp_path):
    scenes = {"scene-0001": 4, "scene-0002": 6, "scene-0003": 4}
    write_nuscenes(tmp_path / "drives", {"train": scenes, "val": {"scene-0004": 2}})
    config = replace(
        find_config("bevformer_micro_smoke")[0],
        {
            "data.root": str(tmp_path),
            "tasks.map": None,
            "tasks.boxes.hw_px": (32, 64),
            "model.network.bev_hw": (8, 8),
            "model.network.cameras": 0,
            "schedule.steps": 8,
        },
    )
    return Trainer(config)


def test_memory_goes_on_in_a_scene_and_begins_anew_with_the_next(trainer, monkeypatch):
    network, seen = trainer.model.network, []
    run_clip = network.run_clip

    def watched(frames, state):
        seen.append((frames, state))
        return run_clip(frames, state)

    monkeypatch.setattr(network, "run_clip", watched)
    steps = list(trainer)
    assert all(not step.skipped for step in steps)
    training = [(frames, state) for frames, state in seen if len(frames) == 2]
    assert len(training) == 8 and training[0][1] is None
    goes_on = 0
    for (frames, state), (before, _) in zip(training[1:], training, strict=False):
        first, second = frames
        gaps = first.rig.time_s - state["time_s"]
        assert torch.equal(second.rig.time_s - first.rig.time_s, torch.full((2,), 0.5, dtype=torch.float64))
        for row in range(2):
            if not first.starts[row]:
                goes_on += 1
                assert float(gaps[row]) == pytest.approx(0.5)
                assert bool(state["has_past"][row]) and float(state["bev"][row].abs().sum()) > 0
                # The world of a stream is turned and mirrored once, not anew at every step.
                torch.testing.assert_close(first.rig.ego_from_ref[row], before[1].rig.ego_from_ref[row])
        assert second.starts is None or not second.starts.any()
    # 7 chunks in 3 scenes an epoch: more than half of the rows go on.
    assert 4 <= goes_on < 14


def test_a_row_that_starts_forgets_what_its_lane_saw(trainer):
    """The same frame in the same lane answers alike whatever was remembered, if it starts."""
    step = next(iter(trainer._make_loader()))
    (batch,) = step.batches["boxes"]
    model = trainer.model.eval()
    _, state = model(batch)
    with torch.no_grad():
        fresh, _ = model(batch, None)
        after, _ = model(batch, state)
    assert bool(batch.starts.all())
    for one, other in zip(fresh, after, strict=True):
        torch.testing.assert_close(one.logits, other.logits)
