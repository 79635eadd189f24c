"""Two processes equal one, to the last digits of float64."""

from pathlib import Path

import pytest
import torch
from rank_processes import run_ranks
from rank_run import CUT, cases, moving_run, result_of
from spike_run import spike_run

from allsight.config import ConfigError, replace
from allsight.engine.distributed import join_ranks
from allsight.engine.trainer import Trainer

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder with the results of all cases on two gloo processes."""
    out = tmp_path_factory.mktemp("ranks")
    run_ranks(Path(__file__).with_name("rank_run.py"), out)
    return out


def _distance(actual: dict, expected: dict) -> tuple[float, str]:
    worst = (0.0, "")
    for name, tensor in expected.items():
        gap = float(
            (actual[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-30)
        )
        worst = max(worst, (gap, name))
    return worst


@pytest.mark.parametrize("name", list(cases()))
def test_two_ranks_equal_one(two_ranks, name):
    saved = torch.load(two_ranks / "two_ranks.pt")
    trainer = Trainer(cases()[name])
    metrics = trainer.fit()
    distance, tensor = _distance(saved["results"][name], result_of(trainer))
    assert distance <= 1e-12, f"{tensor} differs by {distance}"
    assert saved["metrics"][name] == pytest.approx(metrics, rel=1e-9)


def test_a_run_of_two_ranks_is_resumed_by_one(two_ranks):
    config = replace(spike_run("one_task", exact=True), {"checkpoint.every_steps": CUT})
    whole = Trainer(config)
    whole.fit()
    again = Trainer(config, folder=two_ranks / "run", resume=True)
    assert again.step == CUT
    again.fit()
    again.close()
    distance, tensor = _distance(result_of(again), result_of(whole))
    assert distance <= 1e-12, f"{tensor} differs by {distance}"


def test_a_run_moves_from_two_ranks_to_one_and_back(two_ranks):
    losses, weights = torch.load(two_ranks / "two_ranks.pt")["moved"]
    whole = Trainer(moving_run())
    assert losses == pytest.approx([step.loss for step in whole], rel=1e-12)
    distance, tensor = _distance(weights, result_of(whole))
    assert distance <= 1e-12, f"{tensor} differs by {distance}"


def test_a_rank_that_ended_is_named_by_the_others(two_ranks):
    said = torch.load(two_ranks / "two_ranks.pt")["missing"]
    assert said == "rank 1 does not answer any more; see what was said there"


def test_each_rank_keeps_its_diary(two_ranks):
    assert sorted(path.name for path in (two_ranks / "run" / "events").iterdir()) == [
        "rank-0.jsonl",
        "rank-1.jsonl",
    ]


def test_several_processes_for_a_strategy_of_one_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"'single' uses one process, but 2 were started"):
        join_ranks("single", 10.0)
