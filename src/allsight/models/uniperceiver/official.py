"""Names of fundamentalvision/Uni-Perceiver, and how they translate.

Source: fundamentalvision/Uni-Perceiver:uniperceiver/modeling, of v1 and of the Conditional MoE.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from allsight.models.uniperceiver.router import ExpertSettings
from allsight.models.uniperceiver.tokenizers import sincos_grid
from allsight.types import CheckpointError
from allsight.weights import LoadReport, Weights, load_mapped

_CLIP_WORDS, _CLIP_END = 49411, 49407
_LAYERS = "fused_encoder.layers."
_SCALE = "loss_prepare.logit_scale_"
_EXPERTS = ".experts.deepspeed_experts."
_TEXT_NORM, _VISION_NORM = "token_embed.embeddings_norm.", "video_embed.embeddings_norm."
_TEXT_TYPES, _VISION_TYPES = "token_embed.embeddings_token_type.weight", "video_embed.embeddings_type.weight"

# Own name -> official name, outside the trunk.
_NAMES: tuple[tuple[str, str], ...] = (
    (r"^encoder\.text\.words\.", "token_embed.embeddings."),
    (r"^encoder\.text\.positions\.", "token_embed.embeddings_pos.position_embeddings."),
    (r"^encoder\.text\.types\.", "token_embed.embeddings_token_type."),
    (r"^encoder\.norm\.", _TEXT_NORM),
    (r"^encoder\.vision_norm\.", _VISION_NORM),
    (r"^encoder\.vision\.patches\.", "video_embed.embeddings."),
    (r"^encoder\.vision\.grid$", "video_embed.embeddings_st_pos.spatial_pos_embed.weight"),
    (r"^encoder\.vision\.frames\.", "video_embed.embeddings_st_pos.temporal_pos_embed."),
    (r"^encoder\.vision\.types$", _VISION_TYPES),
    (r"^encoder\.output_norm\.", "loss_prepare.ln_post."),
    (r"^encoder\.output\.", "loss_prepare.proj."),
    (r"^log_scales\.", _SCALE),
)
# Own name of a linear layer -> its official one in a model with experts, and in one without.
_LINEAR = {
    "attn.qkv": ("self_attn.qkv_proj", "self_attn.in_proj_"),
    "attn.proj": ("self_attn.dense", "self_attn.out_proj."),
    "fc1": ("linear1", "linear1."),
    "fc2": ("linear2", "linear2."),
}
_ROUTERS = {
    "attn_router": "self_attn.qkv_proj",
    "attn_spare": "self_attn.dense",
    "mlp_router": "linear1",
    "mlp_spare": "linear2",
}
_IN_BLOCK = re.compile(r"^encoder\.trunk\.blocks\.(\d+)\.(.+)$")


def name_of(name: str, *, has_experts: bool, is_group: bool, has_activation: bool) -> str | None:
    """The official name of an entry of `UniPerceiver.state_dict()`; `*` stands for the number of an expert.

    Args:
        has_experts: Whether the model has experts anywhere.
        is_group: Whether this entry holds the weights of several experts.
        has_activation: Whether routers have an activation.
    Returns:
        None where the official code has no such thing.
    """
    inside = _IN_BLOCK.match(name)
    if inside is None:
        for pattern, replacement in _NAMES:
            renamed, count = re.subn(pattern, replacement, name)
            if count:
                return renamed
        return None
    layer, rest = f"{_LAYERS}{inside[1]}.", inside[2]
    part, _, last = rest.rpartition(".")
    if part in _LINEAR:
        grouped, dense = _LINEAR[part]
        if is_group:
            return f"{layer}{grouped}{_EXPERTS}*.{last}"
        return f"{layer}{grouped}.{last}" if has_experts else f"{layer}{dense}{last}"
    first, _, inner = rest.partition(".")
    if first in _ROUTERS:
        gate = f"{layer}{_ROUTERS[first]}.gate."
        norm = "tag_transform.2." if has_activation else "tag_transform.1."
        renamed = re.sub(r"^embed\.", "tag_transform.0.", re.sub(r"^norm\.", norm, inner))
        return gate + renamed.replace("choose.", "wg.")
    if part in ("norm1", "norm2"):
        return layer + rest
    return {"scale1": f"{layer}gamma_1", "scale2": f"{layer}gamma_2"}.get(rest)


def names(state: Weights) -> dict[str, str]:
    """Own name -> official name (`*` for the number of an expert).

    Raises:
        CheckpointError: Some entry has none; names it.
    """
    has_experts = any("_router." in name for name in state)
    found = {}
    for name, tensor in state.items():
        if is_ours(name):
            continue
        dims = 3 if name.endswith("weight") else 2
        renamed = name_of(
            name,
            has_experts=has_experts,
            is_group=name.rpartition(".")[0].endswith(tuple(_LINEAR)) and tensor.ndim == dims,
            has_activation=False,
        )
        if renamed is None:
            raise CheckpointError(
                f"UniPerceiver: no official name for {name}; published models have no such part"
            )
        found[name] = renamed
    return found


def is_ours(name: str) -> bool:
    """Whether an entry of `UniPerceiver.state_dict()` belongs to how a run trains, not to the model."""
    return name.startswith(("queues.", "heads.")) or ".prompts." in name or name.endswith("spe_bias")


def published(state: Weights, *, has_activation: bool = False) -> dict[str, Tensor]:
    """A model's weights under the official names, the norm that texts and pictures share under both."""
    found: dict[str, Tensor] = {}
    for own_name, name in names(state).items():
        tensor = state[own_name]
        if has_activation:
            name = name.replace("tag_transform.1.", "tag_transform.2.")
        if "*" in name:
            found |= {name.replace("*", str(number)): part for number, part in enumerate(tensor)}
        else:
            found[name] = tensor
        if name.startswith(_TEXT_NORM) and "encoder.vision_norm.weight" not in state:
            found[name.replace(_TEXT_NORM, _VISION_NORM)] = tensor
    return found


def is_official(weights: Weights) -> bool:
    """Whether names are those of the official repository."""
    return "token_embed.embeddings.weight" in weights


def load(model: Any, weights: Weights, outside: tuple[str, ...]) -> LoadReport:
    """Put published weights into a model (which may be on the meta device).

    Raises:
        CheckpointError: They do not fit; names the tensors.
    """
    state = model.state_dict()
    folded, found = _folded(weights, state)
    wanted = names(state)
    if any(".tag_transform.2." in name for name in weights):
        wanted = {own: name.replace("tag_transform.1.", "tag_transform.2.") for own, name in wanted.items()}
    report = load_mapped(model, folded, wanted, what="UniPerceiver", skip=_is_unused)
    matched = tuple(real for name in report.matched for real in found.get(name, (name,)))
    return replace(report, matched=matched).with_skipped(outside)


def own(weights: Weights, state: Weights) -> dict[str, Tensor]:
    """Published weights under the names of a model with tasks; what has no place comes back as it is.

    Temperatures that were not published take the one for further tasks.
    """
    folded, _ = _folded(weights, state)
    result: dict[str, Tensor] = {}
    taken = set()
    for own_name, name in names(state).items():
        published_name = name if name in folded else name.replace("tag_transform.1.", "tag_transform.2.")
        if published_name not in folded and name.startswith(_SCALE):
            published_name = f"{_SCALE}downstream"
        if published_name in folded:
            result[own_name] = folded[published_name]
            taken.add(published_name)
    left = {n: t for n, t in folded.items() if n not in taken and not n.startswith(_SCALE)}
    return {**result, **{name: tensor for name, tensor in left.items() if not _is_unused(name)}}


def recognise(weights: Weights) -> dict[str, Any]:
    """Settings of the model that weights belong to.

    Raises:
        CheckpointError: Not those of a Uni-Perceiver.
    """
    needed = ("token_embed.embeddings.weight", "video_embed.embeddings.weight", f"{_LAYERS}0.norm1.weight")
    for name in needed:
        if name not in weights:
            some = ", ".join(list(weights)[:3])
            raise CheckpointError(f"UniPerceiver: no '{name}' among the weights ({some} ...)")
    layers = {int(m[1]): None for name in weights if (m := re.match(re.escape(_LAYERS) + r"(\d+)\.", name))}
    vocab_size, channels = weights[needed[0]].shape
    patch_px = weights[needed[1]].shape[-1]
    grid = weights["video_embed.embeddings_st_pos.spatial_pos_embed.weight"]
    side = isqrt(len(grid))
    first = f"{_LAYERS}0."
    experts = None
    pattern = re.compile(re.escape(f"{first}linear1{_EXPERTS}") + r"(\d+)\.weight")
    count = sum(pattern.fullmatch(name) is not None for name in weights)
    hidden = len(weights[f"{first}linear1{_EXPERTS}0.weight" if count else f"{first}linear1.weight"])
    if count:
        placed = [n for n in layers if f"{_LAYERS}{n}.linear1{_EXPERTS}0.weight" in weights]
        experts = ExpertSettings(
            count=count,
            every=placed[1] - placed[0] if len(placed) > 1 else len(layers),
            activation=f"{first}linear1.gate.tag_transform.2.weight" in weights,
        )
    return dict(
        channels=channels,
        depth=len(layers),
        heads=max(1, channels // 64),
        hidden=hidden,
        layer_scale=1e-3 if f"{first}gamma_1" in weights else None,
        experts=experts,
        vocab_size=vocab_size,
        word_end=_CLIP_END if vocab_size == _CLIP_WORDS else None,
        max_tokens=len(weights["token_embed.embeddings_pos.position_embeddings.weight"]),
        text_types=len(weights[_TEXT_TYPES]),
        patch_px=patch_px,
        image_px=patch_px * side,
        position_scale=_position_scale(grid),
        max_frames=len(weights["video_embed.embeddings_st_pos.temporal_pos_embed.weight"]),
        published=True,
        temperatures=tuple(name.removeprefix(_SCALE) for name in weights if name.startswith(_SCALE)),
    )


def _position_scale(grid: Tensor) -> float:
    """What the numbers of rows and columns were multiplied by; 1 where the grid is no such one."""
    side = isqrt(len(grid))
    if grid.is_meta or side < 2:
        return 1.0
    # The first number of the second row of cells is the sine of 1 times the scale.
    scale = round(math.asin(max(-1.0, min(1.0, float(grid[side, 0])))), 6)
    if scale <= 0:
        return 1.0
    expected = sincos_grid(side, side, grid.shape[1], scale=(scale, scale))
    return scale if torch.allclose(expected, grid.float(), atol=1e-3) else 1.0


def _folded(
    weights: Weights, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The weights with experts in one tensor a group and the shared norm once, and the names behind each."""
    found: dict[str, tuple[str, ...]] = {}
    groups: dict[str, dict[int, str]] = {}
    result = dict(weights)
    for name in weights:
        match = re.fullmatch(f"(.+{re.escape(_EXPERTS)})" + r"(\d+)(\..+)", name)
        if match:
            groups.setdefault(f"{match[1]}*{match[3]}", {})[int(match[2])] = name
    for name, members in groups.items():
        shapes = {weights[member].shape for member in members.values()}
        if sorted(members) == list(range(len(members))) and len(shapes) == 1:
            found[name] = tuple(members[number] for number in range(len(members)))
            result[name] = torch.stack([result.pop(member) for member in found[name]])
    for last in ("weight", "bias") if "encoder.vision_norm.weight" not in state else ():
        text, vision = _TEXT_NORM + last, _VISION_NORM + last
        if text in weights and vision in weights:
            if not torch.equal(weights[text], weights[vision]):
                raise CheckpointError(
                    f"UniPerceiver: {vision} is not {text}; this model has one norm for texts and pictures"
                )
            del result[vision]
            found[text] = (text, vision)
    types = state.get("encoder.text.types.weight")
    if types is not None and _TEXT_TYPES in result:
        # Only the first row is used.
        result[_TEXT_TYPES] = result[_TEXT_TYPES][: len(types)]
    return result, found


def _is_unused(name: str) -> bool:
    """Parameters of the official code that take part in no computation."""
    return name == _VISION_TYPES or re.search(r"\.(self_attn\.dense|linear2)\.gate\.", name) is not None
