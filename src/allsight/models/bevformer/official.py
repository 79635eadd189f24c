"""Names of fundamentalvision/BEVFormer, and how they translate.

Source: fundamentalvision/BEVFormer:projects/configs/bevformer and the classes they name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from allsight.backbones import resnet_official
from allsight.types import CheckpointError
from allsight.types.driving import NUSCENES_CLASSES

CLASSES = NUSCENES_CLASSES
"""Order of the published weights' classes."""

# Encoder layers, deformable backbone, cells -> variant.
VARIANTS = {(3, False, 2500): "tiny", (3, True, 22500): "small", (6, True, 40000): "base"}

_BACKBONE = "img_backbone."
_HEAD = "pts_bbox_head."
_TRANSFORMER = f"{_HEAD}transformer."

# Own name -> official name; the first pattern that fits counts, then those for the inside of layers.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"^network\.backbone\.", _BACKBONE),
    (r"^network\.neck\.lateral\.(\d+)\.", r"img_neck.lateral_convs.\1.conv."),
    (r"^network\.neck\.output\.(\d+)\.", r"img_neck.fpn_convs.\1.conv."),
    (r"^network\.encoder\.queries$", f"{_HEAD}bev_embedding.weight"),
    (r"^network\.encoder\.row_embed$", f"{_HEAD}positional_encoding.row_embed.weight"),
    (r"^network\.encoder\.column_embed$", f"{_HEAD}positional_encoding.col_embed.weight"),
    (r"^network\.encoder\.level_embed$", f"{_TRANSFORMER}level_embeds"),
    (r"^network\.encoder\.camera_embed$", f"{_TRANSFORMER}cams_embeds"),
    (r"^network\.encoder\.motion\.fc1\.", f"{_TRANSFORMER}can_bus_mlp.0."),
    (r"^network\.encoder\.motion\.fc2\.", f"{_TRANSFORMER}can_bus_mlp.2."),
    (r"^network\.encoder\.motion\.norm\.", f"{_TRANSFORMER}can_bus_mlp.norm."),
    (r"^network\.encoder\.layers\.", f"{_TRANSFORMER}encoder.layers."),
    (r"^head\.code_weights$", f"{_HEAD}code_weights"),
    (r"^head\.queries$", f"{_HEAD}query_embedding.weight"),
    (r"^head\.reference\.", f"{_TRANSFORMER}reference_points."),
    (r"^head\.layers\.", f"{_TRANSFORMER}decoder.layers."),
    (r"^head\.classify\.", f"{_HEAD}cls_branches."),
    (r"^head\.regress\.", f"{_HEAD}reg_branches."),
)
_OF_LAYERS: tuple[tuple[str, str], ...] = (
    (r"\.temporal\.", r".attentions.0."),
    (r"\.spatial\.output_proj\.", r".attentions.1.output_proj."),
    (r"\.spatial\.", r".attentions.1.deformable_attention."),
    (r"\.self_attn\.", r".attentions.0.attn."),
    (r"\.cross_attn\.", r".attentions.1."),
    (r"\.mlp\.fc1\.", r".ffns.0.layers.0.0."),
    (r"\.mlp\.fc2\.", r".ffns.0.layers.1."),
)


def names(own: Iterable[str]) -> dict[str, str]:
    """Return own name -> official name for entries of `BEVFormer.state_dict()`.

    Raises:
        CheckpointError: Some of them have none; names them.
    """
    found, without = {}, []
    for name in own:
        renamed = name_of(name)
        if renamed is None:
            without.append(name)
        else:
            found[name] = renamed
    if without:
        raise CheckpointError(
            f"BEVFormer: no official name for {', '.join(without[:3])}"
            f"{f' and {len(without) - 3} more' if len(without) > 3 else ''}; published networks have none"
        )
    return found


def name_of(name: str) -> str | None:
    """The official name of an entry of `BEVFormer.state_dict()`, None where the official code has none."""
    for pattern, replacement in _NAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            if ".layers." not in name or "backbone" in name:
                return renamed
            if ".neighbours." in name:
                return None
            for inner, outer in _OF_LAYERS:
                renamed = re.sub(inner, outer, renamed)
            return renamed
    return None


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with old names of the backbone replaced."""
    return resnet_official.current_names(weights)


def turned(weights: Mapping[str, Tensor], channel_order: str) -> dict[str, Tensor]:
    """The weights with the backbone's first convolution between RGB and the published order, either way."""
    first = f"{_BACKBONE}conv1.weight"
    if channel_order == "rgb" or first not in weights:
        return dict(weights)
    return {**weights, first: weights[first].flip(1)}


def recognise(weights: Mapping[str, Tensor]) -> tuple[str | None, int, int]:
    """The variant (None: none of the published), number of classes and of cameras.

    Raises:
        CheckpointError: Not BEVFormer v1.
    """
    cells, cameras = f"{_HEAD}bev_embedding.weight", f"{_TRANSFORMER}cams_embeds"
    classes = f"{_HEAD}cls_branches.0.6.weight"
    for name in (cells, cameras, classes):
        if name not in weights:
            some = ", ".join(list(weights)[:3])
            raise CheckpointError(f"BEVFormer: no '{name}' among the weights ({some} ...)")
    if any(name.startswith(f"{_TRANSFORMER}fusion.") for name in weights):
        raise CheckpointError(
            "BEVFormer: these are weights of version 2, whose temporal fusion is not built yet"
        )
    pattern = re.compile(re.escape(f"{_TRANSFORMER}encoder.layers.") + r"(\d+)\.")
    layers = len({m[1] for name in weights if (m := pattern.match(name))})
    deform = any(".conv_offset." in name for name in weights)
    variant = VARIANTS.get((layers, deform, weights[cells].shape[0]))
    return variant, weights[classes].shape[0], weights[cameras].shape[0]
