"""Where InternImage weights lie in a file, and under which names.

Everything is brought to the names of the official classification code. The stem tells where the network is:
whatever stands before `patch_embed.conv1.weight` is the prefix of its names.

Source: OpenGVLab/InternImage:classification/utils.py, classification/huggingface/convert.py,
detection/mmdet_custom and segmentation/mmseg_custom; OpenGVLab/DCNv4 for FlashInternImage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from allsight.backbones import internimage_huggingface as huggingface
from allsight.backbones import internimage_official as official
from allsight.types import CheckpointError
from allsight.weights import Opened, places_of

_ANCHOR, _OWN_ANCHOR = "patch_embed.conv1.weight", "stem.conv1.weight"
# Copies of the network that are not the one meant: averaged or frozen teachers, M3I's multi-modal copy.
_COPIES = re.compile(r"(^|\.)(teacher|mm_dcnv3|momentum_encoder|model_ema|ema)\.")
# M3I's dumps keep the head elsewhere.
_M3I_HEAD = (("clip.classifier_ln.", "fc_norm.0."), ("clip.classifier.", "head."))

# What the names beside a backbone tell of the network around it; the first that fits.
_AROUND = (
    ("decode_head.pixel_decoder.", "Mask2Former"),
    ("decode_head.psp_modules.", "UperNet"),
    ("decode_head.", "a segmenter"),
    ("bbox_head.transformer.", "DINO"),
    ("roi_head.bbox_head.0.", "Cascade Mask R-CNN"),
    ("roi_head.mask_head.", "Mask R-CNN"),
    ("roi_head.", "a two-stage detector"),
    ("pts_bbox_head.", "BEVFormer"),
    ("bbox_head.", "a detector"),
)
_STRANGERS = (
    (r"layer1\.0\.(conv1|bn1)\.", "a ResNet"),
    (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table", "a Swin Transformer"),
    (r"stages\.0\.(blocks\.)?0\.(gamma|dwconv|conv_dw)", "a ConvNeXt"),
    (r"(blocks|layers|layer)\.0\.(attn|attention|self_attn)\.", "a vision transformer"),
    (r"features\.0\.", "a VGG or MobileNet"),
)


@dataclass(frozen=True)
class Published:
    """InternImage weights under the names of the official classification code.

    Attributes:
        tensors: Official name -> tensor; a head is among them if it was there.
        source: File or folder, for messages.
        layout: Container and naming, in words.
        notes: What was chosen, a sentence each.
        skipped: Names that are not part of the network, as they stand in the file but for a first `module.`.
        stated: Fields of `InternImage.Config` that a `config.json` beside the weights states.
    """

    tensors: dict[str, Tensor]
    source: str
    layout: str
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    stated: Mapping[str, Any]


def find(opened: Opened) -> Published:
    """Find the network among the tensors of a file and give it its official names.

    Raises:
        CheckpointError: It is not there, or several times.
    """
    names = list(opened.tensors)
    prefix, others = _place(names, _ANCHOR, opened.source)
    notes = [*opened.notes, *others]
    if prefix is None:
        own, _ = _place(names, _OWN_ANCHOR, opened.source)
        if own is None:
            raise _stranger(names, opened.source)
        return _from_own_names(opened, own)
    taken = {name: renamed for name in names if (renamed := _official(name, prefix)) is not None}
    skipped = tuple(name.removeprefix("module.") for name in names if name not in taken)
    notes += _said_of(skipped, prefix)
    found = {renamed: opened.tensors[name] for name, renamed in taken.items()}
    if len(found) != len(taken):
        raise CheckpointError(f"{opened.source}: holds some weights twice under {prefix or 'the same names'}")
    stated = huggingface.fields_of(opened.settings, opened.source)
    if any(huggingface.official_name(name) != name for name in names) or stated:
        naming = "names of Hugging Face"
    else:
        naming = f"official names under {prefix}" if prefix else "official names"
    return Published(found, opened.source, f"{opened.container}, {naming}", tuple(notes), skipped, stated)


def _place(names: list[str], anchor: str, where: str) -> tuple[str | None, list[str]]:
    """The prefix of the network that is meant, and what to say of others."""
    places = places_of(anchor, names)
    meant = [place for place in places if not _COPIES.search(place)] or places
    if len(meant) > 1:
        raise CheckpointError(
            f"{where}: InternImage is there {len(meant)} times, under {', '.join(meant)}; give the tensors "
            f"of one of them as a mapping"
        )
    others = [place for place in places if place not in meant]
    notes = [f"taken from {meant[0] or 'the top'}, not from {', '.join(others)}"] if others else []
    return (meant[0] if meant else None), notes


def _official(name: str, prefix: str) -> str | None:
    """The official name of an entry, or None where it does not belong to the network under `prefix`."""
    if name.startswith(prefix):
        name = name.removeprefix(prefix)
        if name.startswith(("student_proj", "ema_")) or (not prefix and _COPIES.match(name)):
            return None
    elif prefix.endswith("dcnv3."):
        name = name.removeprefix(prefix.removesuffix("dcnv3."))
        renamed = [new + name.removeprefix(old) for old, new in _M3I_HEAD if name.startswith(old)]
        if not renamed and not name.startswith("clip_projector."):
            return None
        name = renamed[0] if renamed else name
    else:
        return None
    # The official loader of M3I's dumps writes the norm's name without its place in the Sequential.
    name = re.sub(r"^fc_norm\.(weight|bias)$", r"fc_norm.0.\1", name)
    return huggingface.official_name(name)


def _said_of(skipped: tuple[str, ...], prefix: str) -> list[str]:
    notes = []
    averages = [name for name in skipped if name.startswith("ema_")]
    if averages:
        notes.append(
            f"{len(averages)} buffers ema_... of an averaging hook are left out; such a hook saves its "
            f"averages under the plain names"
        )
    if prefix.endswith("cb_modules.0."):
        notes.append(
            "CB-InternImage: the first of two copies, a network by itself; the second works only with it"
        )
    around = [what for start, what in _AROUND if any(start in name for name in skipped)]
    if around:
        notes.append(f"the backbone of {around[0]}; the rest is left out")
    return notes


def _from_own_names(opened: Opened, prefix: str) -> Published:
    tensors = opened.tensors
    inner = {name: name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    norm = "batch" if "stem.norm1.running_mean" in inner.values() else "layer"
    renamed = official.official_names(inner.values(), norm)
    taken = {name: renamed[own] for name, own in inner.items()}
    if prefix.endswith("backbone."):
        # A classifier has its head beside the backbone.
        root = prefix.removesuffix("backbone.")
        head = "attention" if f"{root}pool.coarse.weight" in tensors else "conv"
        of_head = [name for name in tensors if name.startswith((f"{root}pool.", f"{root}head."))]
        taken |= {name: official.official_head_name(name.removeprefix(root), head) for name in of_head}
    skipped = tuple(name for name in tensors if name not in taken)
    layout = f"{opened.container}, names of allsight" + (f" under {prefix}" if prefix else "")
    found = {name: tensors[own] for own, name in taken.items()}
    return Published(found, opened.source, layout, opened.notes, skipped, {})


def _stranger(names: list[str], where: str) -> CheckpointError:
    looks = next((what for pattern, what in _STRANGERS if any(re.search(pattern, n) for n in names)), None)
    said = f"they look like {looks}" if looks else f"it has {', '.join(names[:3])} ..."
    return CheckpointError(
        f"{where}: no InternImage weights ('{_ANCHOR}' is not among the {len(names)} names); {said}"
    )
