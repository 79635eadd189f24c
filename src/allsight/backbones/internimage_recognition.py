"""Which InternImage some weights belong to, read off their names and shapes.

Some settings leave no trace in weights: the offset scale, the activation, after which blocks of the third
stage the further norms stand. Published sizes have known values there, a `config.json` may state them; the
report says what was taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from allsight.config import Config, ConfigError, Variants
from allsight.types import CheckpointError

if TYPE_CHECKING:
    from allsight.backbones.internimage_layouts import Published

Shapes = Mapping[str, tuple[int, ...]]

BLOCK = re.compile(r"levels\.(\d+)\.blocks\.(\d+)\.")
FIRST_BLOCK = "levels.0.blocks.0."
_SIZE = ("operator", "channels", "depths", "groups")
_FURTHER_NORM = re.compile(r"levels\.2\.post_norms\.\d+\.0\.weight")

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Recognised:
    """What weights say of their network.

    Attributes:
        fields: Fields of `InternImage.Config`.
        variant: Name of the variant of that size; "" where there is none.
        notes: What the weights did not say and what was taken, a sentence each.
    """

    fields: dict[str, Any]
    variant: str
    notes: tuple[str, ...]


def configure(kind: type[C], found: Published, variants: Variants) -> tuple[C, tuple[str, ...]]:
    """Return the configuration of found weights and what it took that they do not say.

    Args:
        kind: `InternImage.Config`.
        found: The weights.
        variants: Name -> fields of `InternImage`.

    Raises:
        CheckpointError: They are not those of a whole InternImage.
    """
    seen = recognise(found, variants)
    config: Any = built(kind, seen.fields, found.source)
    # What nearly all weights have is no surprise, so only this report says it.
    unsaid = [name for name in ("offset_scale", "act") if name not in found.stated]
    usual = [name for name in unsaid if not any(note.startswith(name) for note in seen.notes)]
    notes = [f"{name} leaves no trace in weights: {getattr(config, name)} taken" for name in usual]
    return config, (*seen.notes, *notes)


def built(kind: type[C], fields: Mapping[str, Any], source: str) -> C:
    """Return `kind(**fields)`, whose faults are those of the weights they were read off.

    Raises:
        CheckpointError: The fields do not go together.
    """
    try:
        return kind(**fields)
    except ConfigError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{source}: the shapes make no InternImage: {reason}") from error


def recognise(found: Published, variants: Variants) -> Recognised:
    """Read the configuration off official weights.

    Args:
        found: The weights.
        variants: Name -> fields of `InternImage`.

    Raises:
        CheckpointError: Parts are missing, or the parts do not make an InternImage.
    """
    weights = found.tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    try:
        seen = _seen(shapes, found.stated)
    except KeyError as error:
        raise CheckpointError(
            f"{found.source}: InternImage: {error.args[0]} is missing; was the file cut short?"
        ) from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{found.source}: the shapes make no InternImage: {error}") from None
    variant = variant_of(seen, variants)
    known = dict(variants.get(variant, {}))
    _check_stated(found, seen)
    notes: list[str] = []
    # What shapes say comes before what a size is known for.
    fields = {**known, **found.stated, **seen}
    fields["layer_scale"] = _layer_scale(shapes, {**known, **found.stated}, notes)
    fields["block_norm"], fields["idle_res_post_norm"] = _block_norm(shapes, {**known, **found.stated}, notes)
    fields["third_stage_norm_after"] = _further_norms(shapes, {**known, **found.stated}, seen, found.source)
    if not variant:
        nearest = nearest_variant(seen, variants)
        notes.append(
            f"no known variant, built as the shapes say: {size_of(seen)}; the nearest is '{nearest}' with "
            f"{size_of(variants[nearest])}"
        )
        if "offset_scale" not in found.stated:
            notes.append("offset_scale leaves no trace in weights: 1.0 taken")
    elif fields["offset_scale"] != 1.0 and "offset_scale" not in found.stated:
        notes.append(f"offset_scale leaves no trace in weights: {fields['offset_scale']} as '{variant}' has")
    return Recognised(fields, variant, tuple(notes))


def nearest_variant(fields: Mapping[str, Any], variants: Variants) -> str:
    """The variant with the nearest width and then the nearest depth."""
    return min(
        variants,
        key=lambda name: (
            abs(variants[name]["channels"] - fields["channels"]),
            abs(sum(variants[name]["depths"]) - sum(fields["depths"])),
        ),
    )


def variant_of(fields: Mapping[str, Any], variants: Variants) -> str:
    """The name of the variant of that operator, width, depth and grouping; "" where there is none."""
    alike = (*_SIZE, "center_feature_scale")
    return next(
        (name for name, known in variants.items() if all(known[key] == fields[key] for key in alike)), ""
    )


def head_of(weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The classifier's fields `head`, `num_classes`, `head_ratio` in official weights; None without head."""
    classes = len(weights["head.weight"]) if "head.weight" in weights and weights["head.weight"].ndim else 0
    if "clip_projector.cross_dcn.proj.weight" in weights:
        return {"head": "attention", "num_classes": classes, "head_ratio": 1.5}
    if "conv_head.0.weight" in weights:
        # Of a wrong shape it is refused by name later.
        out, channels = (*weights["conv_head.0.weight"].shape, 3, 2)[:2]
        return {"head": "conv", "num_classes": classes, "head_ratio": out / max(channels, 1)}
    return None


def _seen(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that shapes alone decide.

    Raises:
        KeyError: A tensor that every InternImage has is missing.
        ValueError: The shapes are not those of an InternImage.
    """
    channels = shapes["patch_embed.conv2.weight"][0]
    blocks = {(int(m[1]), int(m[2])) for name in shapes if (m := BLOCK.match(name))}
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    depths = tuple(1 + max((j for stage, j in blocks if stage == i), default=-1) for i in range(stages))
    if not stages or 0 in depths:
        raise KeyError(f"levels.{depths.index(0) if stages else 0}.blocks.0")
    dcn = f"{FIRST_BLOCK}dcn."
    operator = {f"{dcn}offset_mask.weight": "dcnv4", f"{dcn}weight": "conv"}
    chosen = next((name for key, name in operator.items() if key in shapes), "dcnv3")
    groups, remove_center = _groups(shapes, chosen, channels, stages, stated)
    dw_kernel_size: int | None = 3
    if chosen == "dcnv3":
        dw_kernel_size = shapes[f"{dcn}dw_conv.0.weight"][-1]
    elif chosen == "dcnv4":
        dw_kernel_size = shapes.get(f"{dcn}offset_mask_dw.weight", (None,))[-1]
    return {
        "operator": chosen,
        "channels": channels,
        "depths": depths,
        "groups": groups,
        "mlp_ratio": shapes[f"{FIRST_BLOCK}mlp.fc1.weight"][0] / channels,
        "dw_kernel_size": dw_kernel_size,
        "center_feature_scale": f"{dcn}center_feature_scale_proj_weight" in shapes,
        "remove_center": remove_center,
        "shared_weights": chosen != "dcnv3" or shapes[f"{dcn}output_proj.weight"][1] == channels,
        # Without "dcnv4" one that is not there has been lost.
        "output_bias": chosen != "dcnv4" or f"{FIRST_BLOCK}mlp.fc2.bias" in shapes,
        "norm": "layer" if "patch_embed.norm1.1.weight" in shapes else "batch",
        "out_stages": tuple(range(stages)),
    }


def _groups(
    shapes: Shapes, operator: str, channels: int, stages: int, stated: Mapping[str, Any]
) -> tuple[tuple[int, ...], bool]:
    """Groups of each stage, and whether there are 8 points in place of 9."""
    if operator == "conv":
        of_group = [shapes[f"levels.{i}.blocks.0.dcn.weight"][1] for i in range(stages)]
        return tuple(channels * 2**i // n for i, n in enumerate(of_group)), False
    name = "offset_mask" if operator == "dcnv4" else "mask"
    rows = [shapes[f"levels.{i}.blocks.0.dcn.{name}.weight"][0] for i in range(stages)]
    for points in (8, 9) if stated.get("remove_center") else (9, 8):
        # DCNv4 has offsets and weights together, filled up to a multiple of 8.
        each = 3 * points if operator == "dcnv4" else points
        groups = tuple(n // each for n in rows)
        fill = 8 if operator == "dcnv4" else 1
        whole = all(n == -(-g * each // fill) * fill for g, n in zip(groups, rows, strict=True))
        if whole and all(g and channels * 2**i % g == 0 for i, g in enumerate(groups)):
            return groups, points == 8
    raise ValueError(f"{rows} rows in dcn.{name} of the stages are no groups of 9 or 8 points")


def _layer_scale(shapes: Shapes, known: Mapping[str, Any], notes: list[str]) -> float | None:
    """The initial value matters to training from scratch only."""
    if f"{FIRST_BLOCK}gamma1" not in shapes:
        if known.get("layer_scale") is not None:
            notes.append("has no layer scales, though the published weights of this size do")
        return None
    if known.get("layer_scale") is not None:
        return known["layer_scale"]
    notes.append("has layer scales, as detectors and segmenters with T have; layer_scale=1.0 taken")
    return 1.0


def _block_norm(shapes: Shapes, known: Mapping[str, Any], notes: list[str]) -> tuple[str, bool]:
    """Where blocks normalise, and whether they have norms that are never used."""
    res = f"{FIRST_BLOCK}res_post_norm1.0.weight" in shapes
    if "levels.0.norm.0.weight" not in shapes:
        return "post", res
    gated = f"{FIRST_BLOCK}dcn.center_feature_scale_proj_weight" in shapes
    scaled = f"{FIRST_BLOCK}gamma1" in shapes
    if not gated:
        return ("pre", res) if scaled or not res else ("res_post", False)
    possible = ["post", "pre"] if scaled or not res else ["res_post", "post"]
    if known.get("block_norm") in possible:
        block_norm = known["block_norm"]
    else:
        block_norm = possible[0]
        notes.append(f"weights cannot tell block_norm={possible[0]} from {possible[1]}: {possible[0]} taken")
    return block_norm, res and block_norm != "res_post"


def _further_norms(
    shapes: Shapes, known: Mapping[str, Any], seen: Mapping[str, Any], source: str
) -> tuple[int, ...]:
    count = sum(_FURTHER_NORM.fullmatch(name) is not None for name in shapes)
    depth = seen["depths"][2] if len(seen["depths"]) > 2 else 0
    for places in (tuple(known.get("third_stage_norm_after", ())), tuple(range(5, depth, 6))):
        if len(places) == count:
            return places
    if not count:
        return ()
    raise CheckpointError(
        f"{source}: InternImage: {count} further norms among {depth} blocks of the third stage, and weights "
        f"do not say after which; pass a config with third_stage_norm_after"
    )


def size_of(fields: Mapping[str, Any]) -> str:
    """Operator, width, depth and grouping in words."""
    return ", ".join(f"{name}={fields[name]}" for name in _SIZE)


def _check_stated(found: Published, seen: Mapping[str, Any]) -> None:
    for name in ("channels", "depths", "groups", "remove_center"):
        if name in found.stated and found.stated[name] != seen[name]:
            raise CheckpointError(
                f"{found.source}: config.json beside it says {name}={found.stated[name]}, the weights have "
                f"{seen[name]}; one of them belongs to another model"
            )


def same_size(fields: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Whether operator, width, depth and grouping are alike."""
    return all(fields[name] == seen[name] for name in _SIZE)
