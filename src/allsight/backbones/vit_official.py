"""What published weights of vision transformers look like.

Source: huggingface/pytorch-image-models:timm/models/vision_transformer.py;
facebookresearch/mae:models_mae.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from allsight.types import CheckpointError

_PREFIXES = ("module.", "base_encoder.", "backbone.")
_OUTSIDE = ("head.", "fc_norm.", "decoder_", "mask_token", "pre_logits.", "head_dist.", "momentum_encoder.")


def plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes that training code puts before all names."""
    found = dict(weights)
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def is_outside(name: str, *, fixed: bool) -> bool:
    """Whether a tensor is no part of the backbone, or holds positions that are computed here."""
    return name.startswith(_OUTSIDE) or (fixed and name == "pos_embed")


def recognise(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the network that weights belong to.

    Raises:
        CheckpointError: They are not those of a plain vision transformer.
    """
    projection = weights.get("patch_embed.proj.weight")
    blocks = {int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in weights) if m}
    if projection is None or projection.ndim != 4 or not blocks:
        raise CheckpointError("ViT: no patch_embed.proj.weight and blocks.0 in the weights; give a config")
    channels, patch = int(projection.shape[0]), int(projection.shape[2])
    found: dict[str, Any] = {
        "channels": channels,
        "depth": max(blocks) + 1,
        "heads": max(1, channels // 64),
        "patch_px": patch,
    }
    if "blocks.0.ls1.gamma" in weights:
        found["layer_scale"] = 1e-5
    positions = weights.get("pos_embed")
    is_mae = any(name.startswith("decoder_") for name in weights)
    if positions is not None and not is_mae:
        side = math.isqrt(positions.shape[1] - 1)
        found |= {"positions": "learned", "size_px": side * patch}
    return found
