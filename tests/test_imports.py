"""What an import costs: which modules are loaded by the first lines that people type."""

import json
import subprocess
import sys

import pytest

import allsight

HEAVY = {"PIL", "numpy", "pydantic", "scipy", "tokenizers", "torch"}
# Hooks that the interpreter runs at its start, before our code.
OF_THE_START = {"_distutils_hack", "_editable_skbc_allsight", "sitecustomize", "usercustomize"}


def modules_loaded_by(code):
    """All modules in a fresh interpreter after running `code`."""
    report = "import json, sys; print('', json.dumps(sorted(sys.modules)), sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def packages(modules):
    """The top-level packages among them that are neither Python's own nor allsight."""
    tops = {name.partition(".")[0] for name in modules}
    ours = tops - sys.stdlib_module_names - OF_THE_START - {"__main__", "allsight"}
    # Some extension modules are registered under names of no package, such as `_cython_3_1_4`.
    return {name for name in ours if not name.startswith("_")}


def rooms(modules):
    """The rooms of allsight among them."""
    return {name.split(".")[1] for name in modules if name.startswith("allsight.")}


def test_importing_allsight_loads_nothing_else():
    loaded = modules_loaded_by("import allsight")
    assert packages(loaded) == set()
    assert rooms(loaded) == set()


def test_operators_load_only_torch_numpy_and_jaxtyping():
    loaded = modules_loaded_by("from allsight.ops import dcnv3")
    allowed = packages(modules_loaded_by("import jaxtyping, numpy, torch"))
    assert packages(loaded) <= allowed
    assert not {"PIL", "pydantic", "rich", "typer", "yaml"} & packages(loaded)
    assert rooms(loaded) == {"ops"}


def test_backbone_loads_no_room_above_it():
    loaded = modules_loaded_by("from allsight.backbones import InternImage; InternImage")
    assert rooms(loaded) <= {"backbones", "layers", "ops", "weights", "config", "types"}


def test_help_loads_only_the_command_line_and_no_torch():
    loaded = modules_loaded_by(
        "import sys; sys.argv = ['allsight', '--help']\n"
        "from allsight.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    allowed = packages(modules_loaded_by("import rich.console, rich.markdown, typer, typer.rich_utils"))
    assert packages(loaded) <= allowed
    assert not HEAVY & packages(loaded)


def test_engine_loads_no_concrete_task_model_or_backbone():
    loaded = modules_loaded_by("import allsight.engine.trainer, allsight.engine.predictor")
    contracts = {
        "allsight.tasks.base",
        "allsight.tasks.asking",
        "allsight.models.base",
        "allsight.backbones._base",
    }
    concrete = {
        name
        for name in loaded
        if name.startswith(("allsight.tasks.", "allsight.models.", "allsight.backbones."))
    }
    assert concrete <= contracts


def test_listing_recipes_loads_none_of_them():
    loaded = modules_loaded_by(
        "from allsight.recipes import names, summary; [summary(name) for name in names()]"
    )
    assert not HEAVY - {"pydantic"} & packages(loaded)


@pytest.mark.parametrize("name", allsight.__all__)
def test_public_name_is_there(name):
    assert getattr(allsight, name) is not None
    assert name in dir(allsight)


@pytest.mark.parametrize("room", ["backbones", "config", "data", "layers", "models", "ops", "tasks", "types"])
def test_room_is_an_attribute(room):
    assert getattr(allsight, room).__name__ == f"allsight.{room}"
    assert room in dir(allsight)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
        _ = allsight.Trianer


def test_loading_something_unknown_names_the_nearest_recipe():
    with pytest.raises(allsight.config.ConfigError, match="internimage_micro_tiny20"):
        allsight.load("internimage_micro_tiny2")


def test_package_is_typed():
    from importlib.resources import files

    assert files("allsight").joinpath("py.typed").is_file()
