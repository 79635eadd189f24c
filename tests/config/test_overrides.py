"""`key.path=value` on the real run configuration: what is accepted, in which order, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allsight.backbones import InternImage
from allsight.config import (
    Config,
    ConfigError,
    Mixture,
    apply_overrides,
    build,
    dump,
    dump_yaml,
    parse_yaml,
    replace,
)
from allsight.engine.config import RunConfig
from allsight.engine.optim import SGD, AdamW
from allsight.engine.schedule import Constant, Cosine
from allsight.models import MultiHead
from allsight.tasks import Classification, SemanticSegmentation


def run(**changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "name": "r",
        "model": MultiHead.Config(backbone=InternImage.Config.variant("micro", out_stages=(1, 2, 3))),
        "tasks": Mixture(
            a=Classification.Config(data="imagefolder:a", label_smoothing=0.1),
            b=SemanticSegmentation.Config(data="label_maps:b", share=0.25),
        ),
        "optim": AdamW.Config(lr=2e-3, betas=(0.9, 0.95)),
        "schedule": Cosine.Config(steps=100, final_ratio=0.1),
    }
    return RunConfig(**{**fields, **changes})


def set_to(text: str, base: RunConfig | None = None) -> RunConfig:
    return apply_overrides(base or run(), [text])


VALID = {
    "name": st.from_regex(r"\A[a-zA-Z0-9_-]{1,12}\Z"),
    "seed": st.integers(0, 2**62),
    "optim.lr": st.floats(1e-8, 10),
    "optim.betas": st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
    "optim.clip_norm": st.floats(0.1, 100) | st.sampled_from(["null", "None"]),
    "schedule.steps": st.integers(1, 10**9),
    "precision": st.sampled_from(["fp32", "bf16", "fp64"]),
    "data.root": st.sampled_from(["", "~/data", "on", "007", "1:30", "2024-01-01", "null", "x: y", "[z]"]),
    "data.workers": st.integers(0, 64),
    "train.deterministic": st.sampled_from(["true", "false"]),
    "tasks.a.share": st.floats(0.01, 1) | st.just("[[0, 1], [50, 0.5]]"),
    "tasks.a.data": st.sampled_from(["imagefolder:x", "imagefolder:1:2", "imagefolder:a=b"]),
    "tasks.b.loss_weight": st.integers(0, 9),
    "model.backbone.drop_path": st.floats(0, 0.9),
    "model.backbone.variant": st.sampled_from(["nano", "micro", "small"]),
    "model.backbone.out_stages": st.sampled_from(["[1, 2, 3]", "[0,1,2,3]"]),
    "eval.weights": st.sampled_from(["auto", "raw"]),
}  # fmt: skip


@st.composite
def valid_changes(draw: st.DrawFn) -> list[str]:
    paths = draw(st.lists(st.sampled_from(sorted(VALID)), unique=True, max_size=6))
    return [f"{path}={draw(VALID[path])}" for path in paths]


@given(valid_changes(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_valid_overrides_round_trip_whatever_their_order(changes: list[str], shuffler: random.Random) -> None:
    config = apply_overrides(run(), changes)
    assert build(RunConfig, parse_yaml(dump_yaml(dump(config)), where="here")) == config
    shuffler.shuffle(changes)
    again = apply_overrides(run(), changes)
    assert again == config and hash(again) == hash(config)


@given(st.sampled_from(sorted(VALID)), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_typo_is_one_line_that_names_its_path(path: str, seed: int) -> None:
    rng = random.Random(seed)
    parts = path.split(".")
    position = rng.randrange(len(parts))
    letters = list(parts[position])
    letters.insert(rng.randrange(len(letters) + 1), "q")
    wrong = ".".join(["config", *parts[:position], "".join(letters)])
    text = ".".join([*parts[:position], "".join(letters), *parts[position + 1 :]]) + "=1"
    with pytest.raises(ConfigError) as caught:
        set_to(text)
    assert str(caught.value).startswith(f"{wrong}: no such ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("optm.lr=2e-4", "config.optm: no such field; did you mean 'optim'?"),
        ("optim.lr=fast", "config.optim.lr: expected float, got 'fast'"),
        ("optim.lr=true", "config.optim.lr: expected float, got True"),
        ("optim.lr=-1", "config.optim.lr: input should be greater than 0, got -1"),
        ("optim.lr.x=1", "config.optim.lr.x: 'config.optim.lr' is a single value and has no fields"),
        ("optim.kind=adam", "config.optim.kind: no optimiser 'adam'; did you mean 'adamw'?"),
        ("optim.kind=cosine", "config.optim.kind: no optimiser 'cosine'; there are: adamw, muon, sgd"),
        ("optim=sgd", "config.optim: expected a mapping of settings, got 'sgd'"),
        ("optim.momentum=0.9", "config.optim.momentum: no such field"),
        ("schedule.steps=1.5", "config.schedule.steps: expected int or None, got 1.5"),
        ("tasks.c.share=1", "config.tasks.c: no such item"),
        (
            "tasks.a.data.x=1",
            "config.tasks.a.data.x: 'config.tasks.a.data' is a single value and has no fields",
        ),
        ("tasks.c=null", "config.tasks.c: no such item"),
        ("tasks=5", "config.tasks: expected a mapping"),
        ("tasks.a.share=half", "config.tasks.a.share: expected float or tuple"),
        ("model.variant=micro", "config.model.variant: MultiHead has no variant 'micro'"),
        (
            "model.backbone.variant=mikro",
            "config.model.backbone.variant: InternImage has no variant 'mikro'; did",
        ),
        ("model.backbone.depths.7=1", "config.model.backbone.depths.7: expected a position from 0 to 3"),
        (
            "precision=fp31",
            "config.precision: expected 'fp32', 'bf16', 'fp16' or 'fp64', got 'fp31'; did you mean 'fp32'?",
        ),
        ("name=a/b", "config.name: expected a plain folder name, got 'a/b'"),
        ("name=", "config.name: expected a plain folder name, got ''"),
        ("sampling.lanes=4", "config: sampling.lanes=4 has no meaning with sampling.layout=one_task"),
        ("eval.weights=ema", "config: eval.weights=ema needs averaged weights"),
        ("schedule.epochs=3", "config.schedule: expected steps or epochs, got steps=100 and epochs=3.0"),
        ("optim", "'optim': expected key.path=value, such as optim.lr=2e-4"),
        ("=3", "'=3': expected key.path=value"),
        (".lr=3", "config.: no such field"),
        ("optim.=3", "config.optim.: no such field"),
    ],
)
def test_a_wrong_override_is_one_line(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_to(text)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_settings_that_contradict_each_other_say_which() -> None:
    with pytest.raises(ConfigError, match=r"^config: schedule\.epochs=3 needs exactly one task.*there are 2"):
        apply_overrides(run(), ["schedule.epochs=3", "schedule.steps=null"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("tasks.a.group_size=3", "config.tasks.a: group_size=3 does not divide batch_size=64; "),
        ("optim.betas=[0.9, 1.0]", "config.optim.betas.1: input should be less than 1, got 1.0"),
        ("optim=null", "config.optim: expected Optimiser.Config, got None"),
    ],
)
def test_what_no_run_could_use_is_refused_before_one_starts(change: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(run(), [change])
    assert str(caught.value).startswith(line)


def test_fields_of_text_take_what_was_typed() -> None:
    config = apply_overrides(run(), ["name=2024", "data.root=on", "tasks.a.data=imagefolder:1:30"])
    assert (config.name, config.data.root, config.tasks.a.data) == ("2024", "on", "imagefolder:1:30")
    assert set_to("data.root=").data.root == ""


def test_numbers_may_be_typed_as_people_do() -> None:
    assert set_to("optim.lr=1e-3").optim.lr == 1e-3
    assert set_to("optim.betas=[9e-1, 0.99]").optim.betas == (0.9, 0.99)
    assert set_to("optim.clip_norm=5").optim.clip_norm == 5.0
    assert set_to("optim.clip_norm=None", set_to("optim.clip_norm=5")).optim.clip_norm is None


def test_a_variant_sets_its_own_fields_and_leaves_others() -> None:
    config = apply_overrides(run(), ["model.backbone.remat=block", "model.backbone.variant=small"])
    small = InternImage.Config.variant("small")
    assert config.model.backbone == small.variant("small", out_stages=(1, 2, 3), remat="block")


def test_kinds_come_before_variants_and_those_before_the_rest() -> None:
    changes = ["model.backbone.channels=48", "model.backbone.variant=nano", "model.backbone.kind=internimage"]
    for order in (changes, changes[::-1]):
        backbone = apply_overrides(run(), order).model.backbone
        assert (backbone.channels, backbone.depths) == (48, (1, 1, 2, 1))


def test_the_later_of_two_equal_paths_holds() -> None:
    assert apply_overrides(run(), ["seed=1", "seed=2"]).seed == 2


def test_another_kind_keeps_what_all_kinds_share() -> None:
    config = apply_overrides(run(), ["optim.momentum=0.5", "optim.kind=sgd"])
    assert config.optim == SGD.Config(lr=2e-3, momentum=0.5)
    assert set_to("schedule.kind=constant").schedule == Constant.Config(steps=100)
    assert set_to("optim.kind=adamw") == run()


def test_a_whole_part_set_does_not_undo_what_is_set_inside_it() -> None:
    for order in (["optim={kind: sgd}", "optim.momentum=0.5"], ["optim.momentum=0.5", "optim={kind: sgd}"]):
        assert apply_overrides(run(), order).optim == SGD.Config(momentum=0.5)
    changes = {"model.backbone.variant": "nano", "model": MultiHead.Config(backbone=InternImage.Config())}
    assert replace(run(), changes).model.backbone == InternImage.Config.variant("nano")


def test_a_task_can_be_added_and_removed() -> None:
    added = apply_overrides(
        run(), ["tasks.c.share=0.5", "tasks.c.kind=classification", "tasks.c.data=imagefolder:c"]
    )
    assert list(added.tasks) == ["a", "b", "c"]
    assert added.tasks.c == Classification.Config(data="imagefolder:c", share=0.5)
    assert set_to("tasks.c=null", added) == run()
    assert set_to("tasks.c={kind: classification}").tasks.c == Classification.Config()
    with pytest.raises(ConfigError, match=r"^config\.tasks: expected at least one task"):
        apply_overrides(run(), ["tasks.a=null", "tasks.b=null"])


def test_one_element_of_a_tuple_can_be_set() -> None:
    assert set_to("optim.betas.1=0.99").optim.betas == (0.9, 0.99)


def test_a_setting_inside_something_broken_is_one_line() -> None:
    for changes in (
        ["optim=5", "optim.lr=1"],
        ["tasks=[1]", "tasks.a.share=1"],
        ["model=x", "model.backbone.remat=none"],
    ):
        with pytest.raises(ConfigError) as caught:
            apply_overrides(run(), changes)
        assert "\n" not in str(caught.value)


def test_replace_takes_configurations_and_leaves_the_original() -> None:
    base = run()
    changed = replace(
        base, {"tasks": Mixture(z=Classification.Config(share=0.5)), "tasks.z.share": 0.75, "seed": 3}
    )
    assert list(changed.tasks) == ["z"] and changed.tasks.z.share == 0.75 and changed.seed == 3
    assert base == run()


def test_replace_refuses_unknown_paths() -> None:
    with pytest.raises(ConfigError, match=r"^config\.sed: no such field; did you mean 'seed'\?$"):
        replace(run(), {"sed": 3})


def test_code_of_the_user_may_be_named_on_the_command_line_but_not_without_trust() -> None:
    with pytest.raises(ConfigError, match="--trust"):
        apply_overrides(run(), ["tasks.a.kind=not_loaded_module:Counting"], trust=False)
    with pytest.raises(ConfigError, match=r"^config\.tasks\.a\.kind: cannot import task"):
        apply_overrides(run(), ["tasks.a.kind=not_loaded_module:Counting"])


def test_a_recipe_can_be_any_configuration() -> None:
    assert isinstance(run(), Config)
    assert {run(): 1}[run()] == 1
