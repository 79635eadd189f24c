"""How the weights of an InternImage start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from allsight.layers import DCNv3, DCNv4

if TYPE_CHECKING:
    from allsight.backbones.internimage import InternImage


def start_weights(model: InternImage) -> None:
    """Give all weights their first values, as `init_std` and `residual_init` say.

    Linear layers start small; those of an operator as the operator says. Convolutions and norms keep
    PyTorch's start.
    """
    config = model.config

    def start(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=config.init_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, DCNv3 | DCNv4):
            # `apply` comes to a module after its children.
            module.reset_parameters()

    model.apply(start)
    if config.residual_init == "plain":
        return
    branches = 2 * sum(config.depths)
    factor = 0.0 if config.residual_init == "zero" else branches**-0.5
    with torch.no_grad():
        for stage in model.stages:
            block: Any
            for block in stage.blocks:  # type: ignore[union-attr]
                for weight in _last_factors(block):
                    weight.mul_(factor)


def _last_factors(block: Any) -> tuple[Tensor, ...]:
    """What both branches of a block end with: the weight of a norm, else the last layer.

    Scaling the layer before a norm would do nothing, and a norm of zeros has gradients of size 1 / sqrt(eps).
    """
    if block.block_norm == "post":
        return block.norm1.weight, block.norm2.weight
    if block.block_norm == "res_post":
        return block.res_norm1.weight, block.res_norm2.weight
    operator = block.dcn
    last = operator if isinstance(operator, nn.Conv2d) else operator.output_proj
    return *last.parameters(), *block.mlp.fc2.parameters()
