"""Names, arguments and sizes of OpenGVLab/InternImage, and how they translate.

Source: OpenGVLab/InternImage:classification/models/intern_image.py and classification/configs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from allsight.config import ConfigError, did_you_mean
from allsight.types import CheckpointError

# Own name -> official name, applied in turn. {slot} is the place of the norm in the official Sequential: a
# layout change before a layer norm takes slot 0; a batch norm needs none in front.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"^stem\.norm(\d)\.", r"patch_embed.norm\1.{slot}."),
    (r"^stem\.", r"patch_embed."),
    (r"^downsamples\.(\d+)\.norm\.", r"levels.\1.downsample.norm.{slot}."),
    (r"^downsamples\.(\d+)\.", r"levels.\1.downsample."),
    (r"^stages\.(\d+)\.norm\.", r"levels.\1.norm.0."),
    (r"^stages\.(\d+)\.extra_norms\.(\d+)\.", r"levels.\1.post_norms.\2.0."),
    (r"^stages\.", r"levels."),
    (r"\.(norm[12])\.", r".\1.0."),
    (r"\.res_norm([12])\.", r".res_post_norm\1.0."),
    (r"\.dcn\.dw_conv\.", r".dcn.dw_conv.0."),
    (r"\.dcn\.dw_norm\.", r".dcn.dw_conv.1.{slot}."),
    (r"\.dcn\.center_feature_scale\.", r".dcn.center_feature_scale_proj_"),
)
_HEAD_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "conv": (
        (r"^pool\.proj\.", r"conv_head.0."),
        (r"^pool\.norm\.", r"conv_head.1.0."),
    ),
    "attention": (
        (r"^pool\.coarse\.", r"dcnv3_head_x4.0."),
        (r"^pool\.fine\.", r"dcnv3_head_x3."),
        (r"^pool\.norm\.", r"fc_norm.0."),
        (r"^pool\.attention\.norm_([qkv])\.", r"clip_projector.norm1_\1.0."),
        (r"^pool\.attention\.([qkv])\.bias$", r"clip_projector.cross_dcn.\1_bias"),
        (r"^pool\.attention\.", r"clip_projector.cross_dcn."),
    ),
}
_HEAD = re.compile(r"(conv_head|head|dcnv3_head_x[34]|clip_projector|fc_norm)\.")
_STAGE = re.compile(r"levels\.(\d+)\.(downsample\.)?")

_CONSTRUCTOR: dict[str, Any] = {
    "core_op": "DCNv3",
    "channels": 64,
    "depths": (3, 4, 18, 5),
    "groups": (3, 6, 12, 24),
    "num_classes": 1000,
    "mlp_ratio": 4.0,
    "drop_rate": 0.0,
    "drop_path_rate": 0.2,
    "drop_path_type": "linear",
    "act_layer": "GELU",
    "norm_layer": "LN",
    "layer_scale": None,
    "offset_scale": 1.0,
    "post_norm": False,
    "cls_scale": 1.5,
    "with_cp": False,
    "dw_kernel_size": None,
    "use_clip_projector": False,
    "level2_post_norm": False,
    "level2_post_norm_block_ids": None,
    "res_post_norm": False,
    "center_feature_scale": False,
    "remove_center": False,
    "out_indices": (0, 1, 2, 3),
    "frozen_stages": -1,
    "use_dcn_v4_op": False,
}
# The YAML of the classification code has defaults of its own for these.
_YAML: dict[str, Any] = {"depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32), "drop_path_rate": 0.1}
# Settings of ours that have one value there.
_OFFICIALLY = {
    "operator": "dcnv3",
    "stem_stride": 4,
    "later_strides": None,
    "softmax": True,
    "shared_weights": True,
}
ARGUMENTS = frozenset(_CONSTRUCTOR)
"""Names of the official constructor's arguments."""
_OF_THE_FRAMEWORK = ("type", "init_cfg", "_delete_")
_LISTS = ("depths", "groups", "out_indices", "level2_post_norm_block_ids")
# Field of ours -> the arguments that decide it.
_DECIDING: dict[str, tuple[str, ...]] = {
    "channels": ("channels",),
    "depths": ("depths",),
    "groups": ("groups",),
    "mlp_ratio": ("mlp_ratio",),
    "block_norm": ("post_norm", "res_post_norm"),
    "idle_res_post_norm": ("post_norm", "res_post_norm"),
    "layer_scale": ("layer_scale",),
    "offset_scale": ("offset_scale",),
    "dw_kernel_size": ("dw_kernel_size",),
    "center_feature_scale": ("center_feature_scale",),
    "remove_center": ("remove_center",),
    "third_stage_norm_after": ("level2_post_norm", "level2_post_norm_block_ids"),
    "norm": ("norm_layer",),
    "act": ("act_layer",),
    "drop": ("drop_rate",),
    "drop_path": ("drop_path_rate",),
    "drop_path_rule": ("drop_path_type",),
    "out_stages": ("out_indices",),
    "remat": ("with_cp",),
}

_NORMS = {"LN": "layer", "BN": "batch"}
_ACTIVATIONS = {"GELU": "gelu", "SiLU": "silu", "ReLU": "relu"}


def official_names(own: Iterable[str], norm: str) -> dict[str, str]:
    """Return own name -> official name for entries of a backbone's state dict.

    Args:
        own: Names of the state dict.
        norm: The configuration's `norm`, which decides the place of the norms in the official layout.
    """
    slot = "1" if norm == "layer" else "0"
    names = {}
    for name in own:
        renamed = name
        for pattern, replacement in _NAMES:
            # `patch_embed.norm1.1` must not meet the rule for the norms of blocks.
            if pattern.startswith("^") or renamed.startswith("levels."):
                renamed = re.sub(pattern, replacement.replace("{slot}", slot), renamed)
        names[name] = renamed
    return names


def official_head_name(own: str, head: str) -> str:
    """Return the official name of an entry of `Classifier.state_dict()` outside the backbone.

    Args:
        own: The classifier's name, such as `pool.norm.weight`.
        head: The configuration's `head`, "conv" or "attention".
    """
    for pattern, replacement in _HEAD_NAMES[head]:
        own = re.sub(pattern, replacement, own)
    return own


def is_head(name: str) -> bool:
    """Whether an official name belongs to a classification head."""
    return _HEAD.match(name) is not None


def stage_of(name: str) -> int:
    """Return the stage an official name serves (a downsampling serves the next one), -1 for the stem."""
    match = _STAGE.match(name)
    return -1 if match is None else int(match[1]) + (match[2] is not None)


def official_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the full official arguments in lower case from a constructor call or a YAML block.

    Raises:
        ConfigError: An argument that the official code does not have.
    """
    args = _mapping(args, "arguments")
    if any(key.isupper() for key in args):
        given, defaults = _flatten_yaml(args), {**_CONSTRUCTOR, **_YAML}
    else:
        given, defaults = dict(args), _CONSTRUCTOR
    for key in given:
        if key not in defaults and key not in _OF_THE_FRAMEWORK:
            raise ConfigError(f"official InternImage: no argument '{key}'{did_you_mean(key, defaults)}")
    return {**defaults, **{key: _plain(value) for key, value in given.items() if key in defaults}}


def backbone_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `InternImage.Config` for official arguments.

    Raises:
        ConfigError: Unknown or unsupported arguments.
    """
    given = official_args(args)
    # With use_dcn_v4_op another kernel computes the same: the weights of the points still go through softmax.
    if given["core_op"] not in ("DCNv3", "DCNv3_pytorch"):
        raise ConfigError(f"official InternImage: core_op: expected DCNv3, got {given['core_op']!r}")
    for key in _LISTS:
        optional = key == "level2_post_norm_block_ids"
        if not isinstance(given[key], list | tuple) and not (optional and given[key] is None):
            raise ConfigError(f"official InternImage: {key}: expected a list of numbers, got {given[key]!r}")
    if not isinstance(given["frozen_stages"], int | float):
        raise ConfigError(
            f"official InternImage: frozen_stages: expected a number, got {given['frozen_stages']!r}"
        )
    if given["frozen_stages"] >= 0:
        raise ConfigError(
            "official InternImage: frozen_stages: the official one trains the stem, ours does not; drop it "
            "and set frozen_stages of the result"
        )
    for key, known in (("norm_layer", _NORMS), ("act_layer", _ACTIVATIONS)):
        if not isinstance(given[key], str) or given[key] not in known:
            expected = ", ".join(known)
            raise ConfigError(f"official InternImage: {key}: expected one of {expected}, got {given[key]!r}")
    scaled = given["layer_scale"] is not None
    res_post = given["res_post_norm"] and not given["post_norm"] and not scaled
    extra = given["level2_post_norm_block_ids"] if given["level2_post_norm"] else None
    return {
        "channels": given["channels"],
        "depths": tuple(given["depths"]),
        "groups": tuple(given["groups"]),
        "mlp_ratio": given["mlp_ratio"],
        "block_norm": "post" if given["post_norm"] else "res_post" if res_post else "pre",
        "idle_res_post_norm": bool(given["res_post_norm"]) and not res_post,
        "layer_scale": given["layer_scale"],
        "offset_scale": given["offset_scale"],
        "dw_kernel_size": given["dw_kernel_size"] or 3,
        "center_feature_scale": given["center_feature_scale"],
        "remove_center": given["remove_center"],
        "third_stage_norm_after": tuple(extra or ()),
        "norm": _NORMS[given["norm_layer"]],
        "act": _ACTIVATIONS[given["act_layer"]],
        "drop": given["drop_rate"],
        "drop_path": given["drop_path_rate"],
        "drop_path_rule": given["drop_path_type"],
        "out_stages": tuple(given["out_indices"]),
        "remat": "block" if given["with_cp"] else "none",
    }


def stated_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return `backbone_fields` without those that official defaults decide.

    Raises:
        ConfigError: Unknown or unsupported arguments.
    """
    fields = backbone_fields(args)
    return {name: value for name, value in fields.items() if all(key in args for key in _DECIDING[name])}


def constructor_args(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return official constructor arguments for fields of `InternImage.Config`: `backbone_fields` back.

    Raises:
        CheckpointError: A setting that the official code does not have.
    """
    for name, value in _OFFICIALLY.items():
        if fields[name] != value:
            raise CheckpointError(
                f"InternImage: {name}={fields[name]!r} is unknown to the official code, which has {value!r}"
            )
    extra = list(fields["third_stage_norm_after"])
    return {
        **_CONSTRUCTOR,
        "channels": fields["channels"],
        "depths": list(fields["depths"]),
        "groups": list(fields["groups"]),
        "mlp_ratio": fields["mlp_ratio"],
        "drop_rate": fields["drop"],
        "drop_path_rate": fields["drop_path"],
        "drop_path_type": fields["drop_path_rule"],
        "act_layer": _name_of(fields["act"], _ACTIVATIONS),
        "norm_layer": _name_of(fields["norm"], _NORMS),
        "layer_scale": fields["layer_scale"],
        "offset_scale": fields["offset_scale"],
        "post_norm": fields["block_norm"] == "post",
        "dw_kernel_size": fields["dw_kernel_size"],
        "level2_post_norm": bool(extra),
        "level2_post_norm_block_ids": extra or None,
        "res_post_norm": fields["block_norm"] == "res_post" or fields["idle_res_post_norm"],
        "center_feature_scale": fields["center_feature_scale"],
        "remove_center": fields["remove_center"],
        "out_indices": list(fields["out_stages"]),
        "with_cp": fields["remat"] != "none",
    }


def _flatten_yaml(args: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the three accepted cuts of the YAML file to constructor arguments."""
    model = _mapping(args.get("MODEL", args), "MODEL")
    block = model.get("INTERN_IMAGE", None)
    if block is None:
        return {key.lower(): value for key, value in args.items()}
    flat = {key.lower(): value for key, value in _mapping(block, "MODEL.INTERN_IMAGE").items()}
    # Other entries of MODEL never reach the constructor (DROP_RATE, DROP_PATH_TYPE) or concern training.
    for name, argument in (("NUM_CLASSES", "num_classes"), ("DROP_PATH_RATE", "drop_path_rate")):
        if name in model:
            flat[argument] = model[name]
    train = _mapping(args.get("TRAIN", {}), "TRAIN")
    if "USE_CHECKPOINT" in train:
        flat["with_cp"] = train["USE_CHECKPOINT"]
    return flat


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"official InternImage: {what}: expected names with values, got {value!r}")
    return value


def _name_of(value: str, names: Mapping[str, str]) -> str:
    return next(official for official, own in names.items() if own == value)


def _plain(value: Any) -> Any:
    """Read the strings of YAML as the official code does: 'None' and '1e-5' are not text there."""
    if not isinstance(value, str):
        return value
    if value == "None":
        return None
    try:
        return float(value)
    except ValueError:
        return value
