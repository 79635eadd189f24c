"""DeepSpeed's settings say what the run says, and its engine gives what one process gives."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from deepspeed_run import begin, deepspeed_run, deepspeed_runs, outcome_of, resumed_run
from rank_processes import run_ranks
from small_run import Signs, small_run
from strategy_run import relative_gaps

from allsight.config import ConfigError, Mixture, replace
from allsight.engine.muon import Muon
from allsight.engine.optim import AdamW
from allsight.engine.parallel.deepspeed import deepspeed_settings, refuse_for_deepspeed
from allsight.engine.trainer import Trainer

_IS_THERE = importlib.util.find_spec("deepspeed") is not None
_NEEDS_IT = pytest.mark.skipif(not _IS_THERE, reason="needs the extra: pip install 'allsight[deepspeed]'")
_WITH_IT = [pytest.mark.dist, _NEEDS_IT]


def _run(**changes):
    config = small_run(
        tasks=Mixture(a=Signs.Config(batch_size=32)), optim=AdamW.Config(clip_norm=0.5), precision="bf16"
    )
    return replace(config, changes)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_settings_are_made_from_the_run(stage):
    made = deepspeed_settings(_run(**{"parallel.deepspeed.stage": stage, "train.accumulate": 2}), world=4)
    assert made["train_micro_batch_size_per_gpu"] * made["gradient_accumulation_steps"] * 4 == 32
    assert (made["zero_optimization"]["stage"], made["gradient_clipping"]) == (stage, 0.5)
    assert made["torch_autocast"]["enabled"] and not {"bf16", "fp16"} & made.keys()
    assert json.loads(json.dumps(made)) == made


def test_offload_goes_as_far_as_the_stage():
    for stage in (1, 3):
        changes = {"parallel.deepspeed.offload": True, "parallel.deepspeed.stage": stage}
        zero = deepspeed_settings(_run(**changes), world=2)["zero_optimization"]
        assert zero["offload_optimizer"]["device"] == "cpu"
        assert ("offload_param" in zero) == (stage == 3)


def test_a_file_wins_where_it_does_not_contradict_the_run(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}, "gradient_clipping": "auto"}))
    made = deepspeed_settings(_run(**{"parallel.deepspeed.file": str(file)}), world=2)
    assert made["zero_optimization"] == {"stage": 1}
    assert (made["gradient_clipping"], made["train_micro_batch_size_per_gpu"]) == (0.5, 16)
    file.write_text(json.dumps({"gradient_accumulation_steps": 4}))
    with pytest.raises(ConfigError, match="gradient_accumulation_steps is 4, but the run says 1"):
        deepspeed_settings(_run(**{"parallel.deepspeed.file": str(file)}), world=2)
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"ds\.json: cannot be read as JSON"):
        deepspeed_settings(_run(**{"parallel.deepspeed.file": str(file)}), world=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"precision": "fp64"}, "DeepSpeed has no fp64"),
        ({"precision": "fp16"}, "loss scale of its own"),
        ({"optim.clip_norm": None, "optim.clip_value": 1.0}, "clips by norm only"),
        ({"train.accumulate": 3}, "batch_size 32 cannot be dealt to 2 ranks x accumulate 3"),
        ({"parallel.deepspeed.offload": True, "parallel.deepspeed.stage": 0}, "stage 0 shards nothing"),
    ],
)
def test_what_deepspeed_cannot_do_is_said(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        deepspeed_settings(_run(**changes), world=2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bf16": {"enabled": True}}, "bf16 would round the weights"),
        ({"optimizer": {"type": "Adam"}}, "optimizer and scheduler are those of the run"),
    ],
)
def test_a_file_may_not_change_what_is_trained(tmp_path, given, expected):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(given))
    with pytest.raises(ConfigError, match=expected):
        deepspeed_settings(_run(**{"parallel.deepspeed.file": str(file)}), world=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tasks.b": Signs.Config(batch_size=8)}, "it cannot train 2 tasks"),
        ({"sampling.layout": "mixed_lanes", "sampling.lanes": 2}, "mixed_lanes does not"),
        ({"train.recover_memory": True}, "recover_memory: not with"),
        ({"optim.ema_decay": 0.9}, "no average with DeepSpeed's stage 3"),
        ({"optim": Muon.Config()}, "Muon may need whole matrices"),
    ],
)
def test_runs_that_the_loop_cannot_make_with_deepspeed_are_refused(changes, expected):
    refuse_for_deepspeed(_run(), stage=3)
    with pytest.raises(ConfigError, match=expected):
        refuse_for_deepspeed(_run(**changes), stage=3)


@pytest.mark.skipif(_IS_THERE, reason="DeepSpeed is installed")
def test_without_the_extra_it_is_named():
    with pytest.raises(ConfigError, match=r"pip install 'allsight\[deepspeed\]'"):
        Trainer(replace(deepspeed_run(1), {"parallel.strategy": "deepspeed"}))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Folder, and what two ranks gave."""
    out = tmp_path_factory.mktemp("deepspeed")
    begin(resumed_run(2), out / "from-one")
    run_ranks(Path(__file__).with_name("deepspeed_run.py"), out)
    return out, torch.load(out / "outcomes.pt")


def _assert_equal(found, expected, *, tolerance=1e-6):
    """Weights and averages; moments, which are not divided by their own size, to a little less."""
    gaps = relative_gaps(found["weights"], expected["weights"])
    for name, gap in gaps.items():
        assert gap <= tolerance * (5 if name.startswith("optim/") else 1), f"{name} differs by {gap}"
    steps = expected["steps"][-len(found["steps"]) :]
    for ours, theirs in zip(found["steps"], steps, strict=True):
        assert (ours[0], ours[3], ours[4]) == (theirs[0], theirs[3], theirs[4])
        assert ours[1:3] == pytest.approx(theirs[1:3], rel=10 * tolerance, nan_ok=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=_WITH_IT)
        for name, config in deepspeed_runs().items()
        if config.precision == "fp32"
    ],
)
def test_two_ranks_equal_one_process(outcomes, name):
    expected = outcome_of(deepspeed_runs()[name])
    _assert_equal(outcomes[1][name], expected)
    assert outcomes[1][name]["metrics"] == pytest.approx(expected["metrics"])
    assert any(skipped for *_, skipped in expected["steps"]) == ("skipped" in name)


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=_WITH_IT) for stage in (1, 2, 3)])
def test_bf16_is_autocast_over_float32_weights(outcomes, stage):
    name = f"stage {stage}, bf16"
    found, alone = outcomes[1][name], outcome_of(deepspeed_runs()[name])
    # Ranks round gradients of their own samples, so weights agree to bfloat16's digits only.
    losses, expected = ([step[1] for step in run["steps"]] for run in (found, alone))
    assert losses == pytest.approx(expected, abs=0.02)
    exact = [step[1] for step in outcomes[1][f"stage {stage}"]["steps"]]
    assert losses != pytest.approx(exact, abs=1e-6)
    assert all(tensor.dtype != torch.bfloat16 for tensor in found["weights"].values())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(f"stage {stage} after {before}", marks=_WITH_IT)
        for stage, before in [
            (0, "stage 1"),
            (1, "stage 2"),
            (2, "stage 3"),
            (3, "stage 0"),
            (2, "one process"),
        ]
    ],
)
def test_a_run_goes_on_from_what_another_stage_left(outcomes, name):
    _assert_equal(outcomes[1][name], outcome_of(resumed_run(0)))


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=_WITH_IT) for stage in (1, 3)])
def test_one_process_goes_on_from_a_stage(outcomes, stage):
    # What other ranks have gone on to meanwhile.
    shutil.rmtree(outcomes[0] / f"from-{stage}/checkpoints/step-00000008")
    found = outcome_of(resumed_run(0), outcomes[0] / f"from-{stage}", resume=True)
    _assert_equal(found, outcome_of(resumed_run(0)))


@pytest.mark.dist
@_NEEDS_IT
def test_a_layer_that_a_micro_batch_leaves_out_is_named(outcomes):
    assert "unused.weight and 1 more had no part in one" in outcomes[1]["unused"]
