"""Runs as functions: each recipe returns a `RunConfig`. Importing this loads no recipe and no torch.

A recipe is found by its name in the table below, as `file.py:function`, as a YAML file, or as the run folder
of a run that was started before.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allsight.config import ConfigError, build, did_you_mean, parse_yaml, replace
from allsight.config.base import import_file

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig

RECIPES = {
    "bevformer_base_nuscenes": "allsight.recipes.driving:bevformer_base_nuscenes",
    "bevformer_micro_demo": "allsight.recipes.driving:bevformer_micro_demo",
    "bevformer_micro_drives": "allsight.recipes.driving:bevformer_micro_drives",
    "bevformer_micro_smoke": "allsight.recipes.driving:bevformer_micro_smoke",
    "bevformer_small_nuscenes": "allsight.recipes.driving:bevformer_small_nuscenes",
    "bevformer_tiny_nuscenes": "allsight.recipes.driving:bevformer_tiny_nuscenes",
    "camvid_alone": "allsight.recipes.multitask:camvid_alone",
    "internimage_b_in1k": "allsight.recipes.imagenet:internimage_b_in1k",
    "internimage_g_in1k_512": "allsight.recipes.imagenet:internimage_g_in1k_512",
    "internimage_g_in1k_512_layer_decay": "allsight.recipes.imagenet:internimage_g_in1k_512_layer_decay",
    "internimage_h_in1k_640": "allsight.recipes.imagenet:internimage_h_in1k_640",
    "internimage_h_in1k_640_layer_decay": "allsight.recipes.imagenet:internimage_h_in1k_640_layer_decay",
    "internimage_l_in1k_384": "allsight.recipes.imagenet:internimage_l_in1k_384",
    "internimage_l_in1k_384_layer_decay": "allsight.recipes.imagenet:internimage_l_in1k_384_layer_decay",
    "internimage_l_in22k": "allsight.recipes.imagenet:internimage_l_in22k",
    "internimage_micro_cifar10": "allsight.recipes.internimage:internimage_micro_cifar10",
    "internimage_micro_tiny20": "allsight.recipes.internimage:internimage_micro_tiny20",
    "internimage_micro_tiny20_conv": "allsight.recipes.ablation:internimage_micro_tiny20_conv",
    "internimage_micro_tiny20_dcnv4": "allsight.recipes.ablation:internimage_micro_tiny20_dcnv4",
    "internimage_micro_tiny20_no_softmax": "allsight.recipes.ablation:internimage_micro_tiny20_no_softmax",
    "internimage_micro_tiny20_one_group": "allsight.recipes.ablation:internimage_micro_tiny20_one_group",
    "internimage_micro_tiny20_unshared": "allsight.recipes.ablation:internimage_micro_tiny20_unshared",
    "internimage_s_in1k": "allsight.recipes.imagenet:internimage_s_in1k",
    "internimage_t_in1k": "allsight.recipes.imagenet:internimage_t_in1k",
    "internimage_t_smoke": "allsight.recipes.smoke:internimage_t_smoke",
    "internimage_xl_in1k_384": "allsight.recipes.imagenet:internimage_xl_in1k_384",
    "internimage_xl_in1k_384_layer_decay": "allsight.recipes.imagenet:internimage_xl_in1k_384_layer_decay",
    "internimage_xl_in22k": "allsight.recipes.imagenet:internimage_xl_in22k",
    "joint_smoke": "allsight.recipes.smoke:joint_smoke",
    "joint_tiny20_camvid": "allsight.recipes.multitask:joint_tiny20_camvid",
    "joint_world": "allsight.recipes.smoke:joint_world",
    "m3i_internimage_b": "allsight.recipes.m3i:m3i_internimage_b",
    "m3i_internimage_h": "allsight.recipes.m3i:m3i_internimage_h",
    "m3i_micro": "allsight.recipes.m3i:m3i_micro",
    "m3i_micro_camvid": "allsight.recipes.m3i:m3i_micro_camvid",
    "m3i_micro_finetune": "allsight.recipes.m3i:m3i_micro_finetune",
    "m3i_vit_b16": "allsight.recipes.m3i:m3i_vit_b16",
    "m3i_world": "allsight.recipes.m3i:m3i_world",
    "m3i_world_smoke": "allsight.recipes.m3i:m3i_world_smoke",
    "m3i_vit_b16_finetune": "allsight.recipes.m3i:m3i_vit_b16_finetune",
    "tiny20_alone": "allsight.recipes.multitask:tiny20_alone",
    "uni_perceiver_base_coco": "allsight.recipes.uni_perceiver:uni_perceiver_base_coco",
    "uni_perceiver_base_coco_prompts": "allsight.recipes.uni_perceiver:uni_perceiver_base_coco_prompts",
    "uni_perceiver_base_in1k": "allsight.recipes.uni_perceiver:uni_perceiver_base_in1k",
    "uni_perceiver_base_in1k_prompts": "allsight.recipes.uni_perceiver:uni_perceiver_base_in1k_prompts",
    "uni_perceiver_base_mix16": "allsight.recipes.uni_perceiver:uni_perceiver_base_mix16",
    "uni_perceiver_base_mix16_224": "allsight.recipes.uni_perceiver:uni_perceiver_base_mix16_224",
    "uni_perceiver_moe_base_mix16": "allsight.recipes.uni_perceiver:uni_perceiver_moe_base_mix16",
    "uni_perceiver_moe_base_mix16_224": "allsight.recipes.uni_perceiver:uni_perceiver_moe_base_mix16_224",
    "uni_perceiver_micro_real": "allsight.recipes.language:uni_perceiver_micro_real",
    "uni_perceiver_micro_world": "allsight.recipes.language:uni_perceiver_micro_world",
    "uni_perceiver_world": "allsight.recipes.language:uni_perceiver_world",
    "uni_perceiver_world_smoke": "allsight.recipes.language:uni_perceiver_world_smoke",
}
"""Name -> `module:function`. The functions can also be imported from here."""

__all__ = ["RECIPES", "find_config", "names", "replace", "summary"]


def __getattr__(name: str) -> Any:
    if name in RECIPES:
        return _function(name)
    raise AttributeError(f"module 'allsight.recipes' has no attribute {name!r}")


def names() -> tuple[str, ...]:
    """The names of all recipes."""
    return tuple(sorted(RECIPES))


def summary(name: str) -> str:
    """First line of a recipe's docstring, read from the source so that listing recipes imports none."""
    module_name, _, function_name = RECIPES[name].partition(":")
    spec = find_spec(module_name)
    assert spec is not None and spec.origin is not None, f"recipe module {module_name} is not there"
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function_name:
            return (ast.get_docstring(node) or "").split("\n")[0]
    raise AssertionError(f"{module_name} has no function {function_name}")


def find_config(text: str, *, trust: bool = False) -> tuple[RunConfig, str]:
    """The run that `text` names, and where it was found.

    Args:
        text: A recipe's name, `file.py:function`, a YAML file, or a run folder.
        trust: Also run code that a run folder (or its `resolved.yaml`) names outside allsight. Code in files
            that the caller names himself is always his own choice.
    Returns:
        The configuration, and its origin: the recipe's name, or the path.
    Raises:
        ConfigError: Nothing of that name, or what is there is no valid run.
    """
    if text in RECIPES:
        return _called(_function(text), text), text
    place, sign, function_name = text.rpartition(":")
    if sign and place.endswith(".py"):
        return _called(_user_function(Path(place), function_name), text), text
    path = Path(text).expanduser()
    if text and path.is_dir():
        from allsight.engine.run_folder import read_run_config

        return read_run_config(path, trust=trust), str(path)
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path, trust), str(path)
    if path.suffix == ".py":
        raise ConfigError(f"{text}: name the function in it, such as {text}:my_recipe")
    raise ConfigError(f"no recipe '{text}'{_hint(text)}")


def _hint(text: str) -> str:
    near = did_you_mean(text, RECIPES)
    return (
        near
        if "did you mean" in near
        else "; `allsight config --list` shows all (or give a YAML file or run folder)"
    )


def _function(name: str) -> Callable[[], RunConfig]:
    module_name, _, function_name = RECIPES[name].partition(":")
    return getattr(import_module(module_name), function_name)


def _user_function(file: Path, name: str) -> Callable[[], Any]:
    try:
        module = import_file(file)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{file}: cannot be imported: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [
            key
            for key, value in vars(module).items()
            if isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
        ]
        raise ConfigError(f"{file}: no function '{name}'{did_you_mean(name, there)}")
    return function


def _called(function: Callable[[], Any], text: str) -> RunConfig:
    from allsight.engine.config import RunConfig

    try:
        signature(function).bind()
    except TypeError as error:
        raise ConfigError(
            f"{text}: expected a function without arguments that returns a RunConfig ({error})"
        ) from None
    config = function()
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{text}: expected it to return a RunConfig, got {type(config).__name__}")
    return config


def _from_yaml(file: Path, trust: bool) -> RunConfig:
    from allsight.engine.config import RunConfig, check_format

    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not a text file") from None
    tree = parse_yaml(text, where=str(file))
    # `format` marks what a run wrote: whoever passes such a file on need not have written the code it names.
    written_by_hand = "format" not in tree and file.name != "resolved.yaml"
    tree = check_format(tree, where=str(file))
    return build(RunConfig, tree, path=f"{file}: config", trust=trust or written_by_hand)
