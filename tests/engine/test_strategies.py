"""Every strategy gives what one process gives, to the last digits of float64."""

from pathlib import Path

import pytest
import torch
from rank_processes import run_ranks
from strategy_run import FLOAT32, STRATEGIES, adam, relative_gaps, result_of, strategy_runs

from allsight.config import ConfigError, replace
from allsight.engine.trainer import Trainer

pytestmark = pytest.mark.dist
SHARED = {"parallel.strategy": "ddp", "parallel.expert_ranks": 2}
WORLDS = (2, pytest.param(4, marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world} ranks")
def strategies(request, tmp_path_factory):
    """Number of ranks, folder, and what all strategies gave on them."""
    out = tmp_path_factory.mktemp("strategies")
    run_ranks(Path(__file__).with_name("strategy_run.py"), out, ranks=request.param)
    return request.param, out, torch.load(out / "strategies.pt")


_ONE_PROCESS = {}


def _one_process(config):
    """Metrics and weights of a run of one process; each is run once."""
    if config not in _ONE_PROCESS:
        trainer = Trainer(config)
        _ONE_PROCESS[config] = trainer.fit(), result_of(trainer)
    return _ONE_PROCESS[config]


def _assert_equal(actual, expected, run=""):
    gaps = relative_gaps(actual, expected)
    name = max(gaps, key=gaps.__getitem__)
    assert gaps[name] <= (1e-5 if FLOAT32 in run else 1e-12), f"{run}: {name} differs by {gaps[name]}"


def test_ranks_equal_one_process(strategies):
    world, _, saved = strategies
    for name, (_, config) in strategy_runs(world).items():
        metrics, weights = _one_process(config)
        _assert_equal(saved["results"][name], weights, name)
        assert saved["metrics"][name] == pytest.approx(metrics, rel=1e-5 if FLOAT32 in name else 1e-9), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_goes_on_under_another_strategy(strategies, strategy):
    _, _, saved = strategies
    before = next(name for name in saved["results"] if name.startswith(f"{strategy} after"))
    _, weights = _one_process(adam("single", 1))
    _assert_equal(saved["results"][before], weights)


def test_one_process_goes_on_from_shards(strategies):
    _, out, _ = strategies
    again = Trainer(adam("single", 1), folder=out / "hsdp", resume=True)
    again.fit()
    again.close()
    _assert_equal(result_of(again), _one_process(adam("single", 1))[1])


def test_experts_that_ranks_shared_go_on_on_any_number_of_ranks(strategies):
    _, out, saved = strategies
    expected = _one_process(adam("experts", 1))[1]
    _assert_equal(saved["results"]["experts after experts"], expected)
    again = Trainer(adam("experts", 1), folder=out / "experts", resume=True)
    again.fit()
    again.close()
    _assert_equal(result_of(again), expected)


def test_a_rank_holds_its_share_of_the_state(strategies):
    world, _, saved = strategies
    # Sizes that the ranks cannot share evenly are rounded up.
    assert saved["held"]["fsdp"] < saved["held"]["ddp"] * (1 / world + 0.15)


def test_ranks_with_different_tasks_are_refused_and_do_not_mix_weights(strategies):
    _, _, saved = strategies
    assert "rank 0: a; rank 1: b" in saved["refusal"] and "one_task" in saved["refusal"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parallel.strategy": "fsdp", "sampling.layout": "mixed_lanes", "sampling.lanes": 2}, "mixed_lanes"),
        ({"parallel.strategy": "ddp", "parallel.ddp.static_graph": True}, "static_graph: 2 tasks"),
        ({"parallel.strategy": "fsdp", "train.recover_memory": True}, "recover_memory: not with"),
        ({"parallel.strategy": "fsdp", "parallel.fsdp.gather_half": True}, "fp64 has no half format"),
        ({"parallel.strategy": "hsdp", "parallel.fsdp.shard_ranks": 3}, "2 ranks do not form groups of 3"),
        ({**SHARED, "parallel.expert_ranks": 3}, "expert_ranks: 2 ranks do not form groups of 3"),
        ({**SHARED}, "expert_ranks: the model has no experts that tokens choose for themselves"),
        ({**SHARED, "sampling.layout": "mixed_lanes"}, "expert_ranks: not with sampling.layout=mixed_lanes"),
        ({**SHARED, "train.recover_memory": True}, r"expert_ranks: not with train\.recover_memory"),
        (
            {**SHARED, "parallel.strategy": "fsdp"},
            "expert_ranks: the model has no experts that tokens choose for themselves",
        ),
    ],
)
def test_strategies_that_cannot_work_are_refused(changes, expected):
    from blocks_run import blocks_run

    from allsight.engine.distributed import Ranks
    from allsight.engine.parallel import spread

    config = replace(blocks_run(), changes)
    model = Trainer(blocks_run()).model
    with pytest.raises(ConfigError, match=expected):
        spread(model, config, Ranks(0, 2))


def test_experts_that_ranks_cannot_share_evenly_are_refused():
    from expert_run import Experts

    from allsight.engine.distributed import Ranks
    from allsight.engine.parallel.experts import SplitExperts

    with pytest.raises(ConfigError, match="3 experts cannot be shared evenly by 2 ranks; expected a divisor"):
        SplitExperts(Experts(Experts.Config(experts=3), {}), 2, Ranks(0, 2))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parallel.strategy": "single"}, "expert_ranks=2 belongs to strategy=ddp, fsdp or hsdp, not single"),
        ({"parallel.strategy": "deepspeed"}, "belongs to strategy=ddp, fsdp or hsdp, not deepspeed"),
        (
            {"parallel.strategy": "fsdp", "parallel.fsdp.offload": True},
            "expert_ranks=2: not with fsdp.offload",
        ),
    ],
)
def test_what_cannot_go_with_shared_experts_is_refused(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        replace(adam("single", 1), {**changes, "parallel.expert_ranks": 2})
