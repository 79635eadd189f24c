"""The order of InternImage's layers, along which learning rates decay: ours and the official ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from allsight.backbones._base import DepthLayer

if TYPE_CHECKING:
    from allsight.backbones.internimage import InternImage

Modules = list[nn.Module]


def layers_in_order(model: InternImage, compat: str) -> tuple[DepthLayer, ...]:
    """The layers of an InternImage, first to last.

    Ours: the stem, then every block. A norm after a block belongs to that block, also the one that closes a
    stage; a downsampling belongs to the first block behind it.

    `official`: the stem belongs to the first block; downsampling and closing norm of a stage belong to the
    first block of the next; norms between blocks and the closing norm of the last stage belong to none.

    `official_dense`: the stem is a layer of its own, and behind the last block comes one more, which is the
    heads'. Closing norm and downsampling of a stage belong to the first block of the next, and of the last
    stage to its own first block. The n-th norm between blocks belongs to block n of its stage, wherever it
    stands.

    Raises:
        NotImplementedError: Another `compat`.

    Source: OpenGVLab/InternImage:classification/models/intern_image.py (lr_decay_keywards) and
        detection/mmcv_custom/custom_layer_decay_optimizer_constructor.py.
    """
    if compat not in ("none", "official", "official_dense"):
        raise NotImplementedError(f"InternImage knows no table of learning rates compat={compat}")
    blocks = _blocks(model)
    if compat == "none":
        _add_extras(model, blocks)
    elif compat == "official":
        blocks[0][0].insert(0, model.stem)
        _add_transitions(model, blocks)
    else:
        _add_transitions(model, blocks)
        stages: Any = model.stages
        blocks[-1][0].append(stages[-1].norm)
        for stage, modules in zip(stages, blocks, strict=True):
            for number, norm in enumerate(stage.extra_norms):
                modules[number].append(norm)
    layers = [
        DepthLayer(stage, tuple(modules)) for stage, found in enumerate(blocks, start=1) for modules in found
    ]
    stem = [] if compat == "official" else [DepthLayer(0, (model.stem,))]
    heads = [DepthLayer(len(blocks), ())] if compat == "official_dense" else []
    return (*stem, *layers, *heads)


def _blocks(model: Any) -> list[list[Modules]]:
    """The blocks of each stage, each alone in a list that others can join."""
    return [[[block] for block in stage.blocks] for stage in model.stages]


def _add_extras(model: Any, blocks: list[list[Modules]]) -> None:
    for number, (stage, modules) in enumerate(zip(model.stages, blocks, strict=True)):
        for after, norm in zip(stage.norm_after, stage.extra_norms, strict=True):
            modules[after].append(norm)
        modules[-1].append(stage.norm)
        if number:
            modules[0].insert(0, model.downsamples[number - 1])


def _add_transitions(model: Any, blocks: list[list[Modules]]) -> None:
    for number, downsample in enumerate(model.downsamples):
        blocks[number + 1][0] += [model.stages[number].norm, downsample]
