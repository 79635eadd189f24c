"""Recipes: each is a valid run that survives being written down, and is found by whatever names it."""

from __future__ import annotations

import inspect
import json
import pickle
from importlib import import_module
from pathlib import Path

import pytest
import torch

from allsight import recipes
from allsight.backbones.internimage_scaling import costs
from allsight.config import ConfigError, build, dump, dump_yaml, parse_yaml, replace
from allsight.data.text import Tokenizer
from allsight.data.world.language.words import tokenizer_json
from allsight.engine.config import RunConfig
from allsight.models.base import model_for_tasks, num_parameters
from allsight.recipes import find_config
from allsight.tasks import build_tasks

NAMES = recipes.names()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_yaml_and_pickle_with_its_hash(name: str) -> None:
    config, origin = find_config(name)
    assert (config.name, origin) == (name, name)
    from_yaml = build(RunConfig, parse_yaml(dump_yaml(dump(config)), where="here"))
    pickled = pickle.loads(pickle.dumps(config))
    assert from_yaml == pickled == config
    assert hash(from_yaml) == hash(pickled) == hash(config)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_needs_and_what_to_expect(name: str) -> None:
    text = inspect.getdoc(getattr(recipes, name)) or ""
    assert text.split("\n")[0] == recipes.summary(name) and len(recipes.summary(name)) < 100
    for word in ("Command: allsight ", "Hardware: ", "Expected: ", "Measured here: ", "Source: "):
        assert word in text, f"{name} says nothing of '{word}'"


def test_the_table_and_the_functions_agree() -> None:
    for name, place in recipes.RECIPES.items():
        module_name, _, function = place.partition(":")
        assert function == name
        assert inspect.isfunction(getattr(import_module(module_name), function))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_no_place_of_its_author(name: str) -> None:
    config, _ = find_config(name)
    assert config.data.root == ""
    for task in config.tasks.values():
        assert not task.data.partition(":")[2].startswith(("/", "~", "."))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a tokenizer, which tasks with texts need."""
    folder = tmp_path_factory.mktemp("root")
    Tokenizer.train(["a text"], vocab_size=300).save(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_model_of_a_recipe_can_be_built_for_its_tasks(name: str, root: Path) -> None:
    config, _ = find_config(name)
    for file in {getattr(settings, "tokenizer", "") for settings in config.tasks.values()} - {""}:
        if not (root / file).exists():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(json.dumps(tokenizer_json()))
    counts = {task: getattr(settings, "num_classes", None) or 12 for task, settings in config.tasks.items()}
    names = {task: tuple(f"c{i}" for i in range(count)) for task, count in counts.items()}
    names |= {task: s.classes for task, s in config.tasks.items() if getattr(s, "classes", ())}
    with torch.device("meta"):
        model = model_for_tasks(config.model, build_tasks(config.tasks, root, names))
    assert num_parameters(model) > 100_000


@pytest.mark.parametrize("task", ["tiny20", "camvid"])
def test_a_task_alone_gets_as_many_of_its_own_steps_as_in_the_joint_run(task: str) -> None:
    joint, alone = recipes.joint_tiny20_camvid(), getattr(recipes, f"{task}_alone")()
    assert list(alone.tasks) == [task]
    assert (
        alone.tasks[task] == joint.tasks[task] and alone.optim == joint.optim and alone.model == joint.model
    )
    assert alone.schedule.steps == joint.schedule.steps * joint.tasks[task].share


def test_camvid_is_trained_without_the_sequence_it_is_judged_on() -> None:
    assert recipes.joint_tiny20_camvid().tasks.camvid.leave_out == ("0016E5",)


def test_a_function_of_a_users_file_is_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipes_of_a_user.py"
    file.write_text(
        "from allsight.recipes import joint_smoke, replace\n"
        "def mine():\n    return replace(joint_smoke(), {'name': 'mine', 'seed': 5})\n"
        "def wrong():\n    return 3\n"
    )
    config, origin = find_config(f"{file}:mine")
    assert (config.name, config.seed, origin) == ("mine", 5, f"{file}:mine")
    for text, line in {
        f"{file}:mien": f"{file}: no function 'mien'; did you mean 'mine'?",
        f"{file}:wrong": f"{file}:wrong: expected it to return a RunConfig, got int",
        f"{file}": f"{file}: name the function in it, such as {file}:my_recipe",
        f"{tmp_path}/none.py:mine": f"{tmp_path}/none.py: no such file",
    }.items():
        with pytest.raises(ConfigError) as caught:
            find_config(text)
        assert str(caught.value) == line


def test_a_broken_file_of_a_user_is_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken_recipes_of_a_user.py"
    file.write_text("def mine(:\n")
    with pytest.raises(ConfigError, match=r"broken_recipes_of_a_user\.py: .*line 1") as caught:
        find_config(f"{file}:mine")
    assert "\n" not in str(caught.value)


def test_what_is_printed_can_be_passed_in(tmp_path: Path) -> None:
    for name in NAMES:
        config, _ = find_config(name)
        changed = replace(config, {"seed": 7})
        file = tmp_path / f"{name}.yaml"
        file.write_text(dump_yaml(dump(changed)))
        assert find_config(str(file)) == (changed, str(file))


def run_folder(folder: Path, config: RunConfig, *, version: object = 1, extra: str = "") -> Path:
    folder.mkdir()
    (folder / "resolved.yaml").write_text(f"format: {version}\n{dump_yaml(dump(config))}{extra}")
    return folder


def test_a_run_folder_and_its_yaml_are_recipes(tmp_path: Path) -> None:
    config = recipes.joint_world()
    folder = run_folder(tmp_path / "old", config)
    assert find_config(str(folder))[0] == config
    assert find_config(str(folder / "resolved.yaml"))[0] == config


@pytest.mark.parametrize("version", [2, 99, "two", None])
def test_a_run_of_a_newer_format_is_refused(tmp_path: Path, version: object) -> None:
    folder = run_folder(tmp_path / "new", recipes.joint_world(), version=version)
    for place in (folder, folder / "resolved.yaml"):
        with pytest.raises(ConfigError, match=r"format .* newer .*update allsight") as caught:
            find_config(str(place))
        assert str(folder / "resolved.yaml") in str(caught.value) and "\n" not in str(caught.value)


def test_code_that_a_run_folder_names_is_run_only_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_task.py").write_text("raise SystemExit('foreign code ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = run_folder(tmp_path / "theirs", recipes.joint_world())
    file = folder / "resolved.yaml"
    file.write_text(file.read_text().replace("kind: classification", "kind: foreign_task:Counting"))
    without_format = tmp_path / "theirs" / "resolved.yaml"
    for place in (folder, file):
        with pytest.raises(ConfigError, match=r"tasks\.shapes\.kind: .*--trust"):
            find_config(str(place))
    with pytest.raises(SystemExit, match="foreign code ran"):
        find_config(str(folder), trust=True)
    without_format.write_text(without_format.read_text().replace("format: 1\n", ""))
    with pytest.raises(ConfigError, match="--trust"):
        find_config(str(without_format))
    # A YAML file that the user wrote and names is his own choice, as a recipe file is.
    own = tmp_path / "own.yaml"
    own.write_text(without_format.read_text())
    with pytest.raises(SystemExit, match="foreign code ran"):
        find_config(str(own))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("joint_wrld", "no recipe 'joint_wrld'; did you mean 'joint_world'?"),
        ("xyz", "no recipe 'xyz'; `allsight config --list` shows all (or give a YAML file or run folder)"),
        ("no/such.yaml", "no/such.yaml: no such file"),
        ("no/such/run", "no recipe 'no/such/run'; `allsight config --list` shows all"),
        ("", "no recipe ''; `allsight config --list`"),
    ],
)
def test_an_unknown_recipe_is_one_line(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_config(text)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_what_is_no_recipe_in_a_users_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipes_of_mine.py"
    file.write_text(
        "from allsight.recipes import replace\n\ndef mine():\n    return 3\n\nclass Mine:\n"
        "    def __init__(self, config):\n        pass\n"
    )
    for name in ("replace", "Mine"):
        with pytest.raises(ConfigError, match=f"{name}: expected a function without arguments"):
            find_config(f"{file}:{name}")
    with pytest.raises(ConfigError, match="mine: expected it to return a RunConfig, got int"):
        find_config(f"{file}:mine")
    with pytest.raises(ConfigError, match="no function 'mein'; did you mean 'mine'"):
        find_config(f"{file}:mein")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder \(it has no resolved\.yaml\)"):
        find_config(str(tmp_path))


def test_a_fault_in_yaml_names_file_and_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml(dump(recipes.joint_world())).replace("weight_decay", "weight_deacy"))
    with pytest.raises(ConfigError) as caught:
        find_config(str(file))
    assert str(caught.value) == (
        f"{file}: config.optim.weight_deacy: no such field; did you mean 'weight_decay'?"
    )
    for broken in (b"\xff\xfe\x00", b"a: [", b""):
        file.write_bytes(broken)
        with pytest.raises(ConfigError, match=str(file)) as caught:
            find_config(str(file))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("trait", ["conv", "dcnv4", "no_softmax", "one_group", "unshared"])
def test_ablations_have_as_many_parameters_and_as_much_work_as_the_original(trait: str) -> None:
    def size(config: RunConfig) -> tuple[int, int]:
        names = {"tiny20": tuple(f"c{i}" for i in range(20))}
        with torch.device("meta"):
            model = model_for_tasks(config.model, build_tasks(config.tasks, None, names))
        return num_parameters(model), sum(part.macs for part in costs(config.model.backbone, (64, 64)))

    origin = recipes.internimage_micro_tiny20()
    ablation = getattr(recipes, f"internimage_micro_tiny20_{trait}")()
    for own, original in zip(size(ablation), size(origin), strict=True):
        assert own == pytest.approx(original, rel=0.05)
    same = {"name": origin.name, "model.backbone": origin.model.backbone}
    assert replace(ablation, same) == origin
