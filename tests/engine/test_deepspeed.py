"""DeepSpeed's settings say what the run says."""

import json

import pytest
from small_run import Signs, small_run

from allsight.config import ConfigError, Mixture, replace
from allsight.engine.optim import AdamW
from allsight.engine.parallel.deepspeed import deepspeed_settings


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
        ({"optim.clip_norm": None, "optim.clip_value": 1.0}, "clips by norm only"),
        ({"train.accumulate": 3}, "batch_size 32 cannot be dealt to 2 ranks x accumulate 3"),
        ({"parallel.deepspeed.offload": True, "parallel.deepspeed.stage": 0}, "stage 0 shards nothing"),
    ],
)
def test_what_deepspeed_cannot_do_is_said(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        deepspeed_settings(_run(**changes), world=2)
