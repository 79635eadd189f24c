"""The Hugging Face form of InternImage: names and `config.json`, both ways.

Source: OpenGVLab/InternImage:classification/huggingface (convert.py and the config.json of each model).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from allsight.backbones import internimage_official as official
from allsight.types import CheckpointError
from allsight.weights import write_weights

PREFIX = "model."
_MODEL_TYPES = ("internimage", "intern_image")


def official_name(name: str) -> str:
    """Return the official name for one that has lost its prefix: `layer_scale1` is `gamma1` there."""
    return re.sub(r"(?<=\.)layer_scale([12])$", r"gamma\1", name)


def huggingface_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return official weights under the names of Hugging Face."""
    return {PREFIX + re.sub(r"(?<=\.)gamma([12])$", r"layer_scale\1", name): t for name, t in weights.items()}


def settings_of(fields: Mapping[str, Any], *, head: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of `config.json`.

    Args:
        fields: Fields of an `InternImage.Config`.
        head: `num_classes`, `cls_scale`, `use_clip_projector` of a classifier.

    Raises:
        CheckpointError: A setting that the official code does not have.
    """
    name = "InternImageModel" if head is None else "InternImageModelForImageClassification"
    without_head = {"num_classes": 0, "cls_scale": 1.5, "use_clip_projector": False}
    arguments = official.constructor_args(fields)
    for unused in ("out_indices", "frozen_stages", "use_dcn_v4_op"):
        del arguments[unused]
    return {
        **arguments,
        **(head or without_head),
        "model_type": "internimage",
        "architectures": [name],
        "torch_dtype": "float32",
    }


def fields_of(settings: Mapping[str, Any] | None, source: str) -> dict[str, Any]:
    """Return the fields of `InternImage.Config` that a `config.json` states; none if it is of another model.

    Args:
        settings: Its content, if there is one.
        source: The weights it lies beside, for messages.

    Raises:
        CheckpointError: It is InternImage's, but not understood.
    """
    if settings is None or settings.get("model_type") not in _MODEL_TYPES:
        return {}
    known = {key: settings[key] for key in official.ARGUMENTS if key in settings}
    try:
        return official.stated_fields({key: value for key, value in known.items() if key != "out_indices"})
    except ValueError as error:
        raise CheckpointError(f"{source}: config.json beside the weights: {error}") from error


def write(weights: Mapping[str, Tensor], settings: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write `model.safetensors` and `config.json`; the folder is made.

    Args:
        weights: Under official names.
        settings: What `settings_of` returns.
        folder: Where to.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_weights(huggingface_names(weights), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
