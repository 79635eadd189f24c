"""Putting published InternImage weights into a network, also one that differs where their meaning stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from allsight.backbones.internimage_layouts import Published
from allsight.backbones.internimage_recognition import (
    BLOCK,
    FIRST_BLOCK,
    nearest_variant,
    recognise,
    same_size,
    size_of,
    variant_of,
)
from allsight.config import Variants
from allsight.types import CheckpointError
from allsight.weights import LoadReport, load_mapped


def load_published(
    module: nn.Module,
    names: Mapping[str, str],
    found: Published,
    fields: Mapping[str, Any],
    variants: Variants,
    *,
    what: str,
    skip: Callable[[str], bool] = lambda name: False,
    notes: Sequence[str] = (),
) -> LoadReport:
    """Put found weights into a module whose backbone has `fields`, and report.

    Args:
        module: May be on the meta device.
        names: Own name -> official name, for every entry of its state dict.
        found: The weights.
        fields: Fields of the `InternImage.Config` of its backbone.
        variants: Name -> fields of `InternImage`.
        what: What is being loaded, for messages.
        skip: Whether an official name is left out by rule when the module does not want it.
        notes: What was decided before, for the report.

    Raises:
        CheckpointError: The weights do not fit; names the tensors, and the variant if it is another.
    """
    weights, neutral, done = fitted(found.tensors, fields)
    where = f"{found.source}: {what}"
    hint = misfit(found, fields, variants)
    report = load_mapped(module, weights, names, what=where, skip=skip, neutral=neutral, hint=hint)
    return replace(
        report,
        skipped=report.skipped + found.skipped,
        notes=(*found.notes, *notes, *done),
        source=found.source,
        layout=found.layout,
        variant=variant_of(fields, variants),
    )


def fitted(
    weights: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Adapt weights to settings under which they still mean the same.

    Args:
        weights: Official weights.
        fields: Fields of the `InternImage.Config` that is built.

    Returns:
        The weights, neutral values for names they lack, and what was done, a sentence each.
    """
    weights, notes = dict(weights), []
    neutral: dict[str, Tensor] = {}
    if fields["remove_center"] and _points(weights, fields) == 9:
        notes.append("remove_center: the rows of the middle point were left out of the offsets and weights")
        weights = {name: _without_center(name, tensor) for name, tensor in weights.items()}
    # A factor of 1 changes nothing. Dense configurations of T have it, its classification weights do not.
    if fields["layer_scale"] == 1.0 and not any(_is_gamma(name) for name in weights):
        for stage, depth in enumerate(fields["depths"]):
            ones = torch.ones(fields["channels"] * 2**stage)
            for block in range(depth):
                neutral |= {f"levels.{stage}.blocks.{block}.gamma{n}": ones for n in (1, 2)}
        notes.append("layer_scale: the weights have none; it starts at 1.0, which changes nothing")
    return weights, neutral, notes


def misfit(found: Published, fields: Mapping[str, Any], variants: Variants) -> str:
    """How the network of some weights differs from one with `fields`, in words; "" where that is not seen."""
    try:
        seen = recognise(found, variants)
    except CheckpointError:
        return ""
    if same_size(seen.fields, fields):
        differing = [
            f"{name}={seen.fields[name]}"
            for name in ("block_norm", "layer_scale", "dw_kernel_size", "center_feature_scale", "output_bias")
            if seen.fields[name] != fields[name]
        ]
        return f"the weights have {', '.join(differing)}" if differing else ""
    named = [
        f"{variant_of(net, variants) or f'nearest to {nearest_variant(net, variants)}'} ({size_of(net)})"
        for net in (seen.fields, fields)
    ]
    return f"the weights are InternImage {named[0]}, the model is InternImage {named[1]}"


def _points(weights: Mapping[str, Tensor], fields: Mapping[str, Any]) -> int:
    """Sampling points per group, 0 where there are none."""
    groups = fields["groups"][0]
    if (mask := weights.get(f"{FIRST_BLOCK}dcn.mask.weight")) is not None:
        return mask.shape[0] // groups
    if (both := weights.get(f"{FIRST_BLOCK}dcn.offset_mask.weight")) is not None:
        return 8 if both.shape[0] == 24 * groups else 9
    return 0


def _without_center(name: str, tensor: Tensor) -> Tensor:
    """The rows of points 0 to 3 and 5 to 8 of every 9."""
    match = re.search(r"\.dcn\.(mask|offset|offset_mask)\.(weight|bias)$", name)
    if match is None:
        return tensor
    kept = {
        "mask": [p for p in range(9) if p != 4],
        "offset": [p for p in range(18) if p not in (8, 9)],
        "offset_mask": [p for p in range(27) if p not in (8, 9, 22)],
    }[match[1]]
    group = {"mask": 9, "offset": 18, "offset_mask": 27}[match[1]]
    # What fills DCNv4's rows up to a multiple of 8 is at the end, and 24 rows a group need none.
    whole = tensor[: tensor.shape[0] // group * group]
    return whole.unflatten(0, (-1, group))[:, kept].flatten(0, 1)


def _is_gamma(name: str) -> bool:
    return BLOCK.match(name) is not None and name.endswith((".gamma1", ".gamma2"))
