"""The parts of an InternImage: stem, downsampling, blocks and the stages that hold them.

Letters in shapes: b batch, h w map, c channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allsight.backbones.internimage_operators import make_operator
from allsight.layers import (
    MLP,
    ConvLast,
    DropPath,
    Remat,
    make_activation,
    make_norm,
    recompute,
)
from allsight.layers.inference import (
    CompiledAlone,
    fuses,
    scale_output,
    take_in_batch_norm,
    with_prepared_layers,
)
from allsight.ops import add_layer_norm, layer_norm_add

if TYPE_CHECKING:
    from allsight.backbones.internimage import InternImage


class Stem(nn.Module):
    """Two 3x3 convolutions that take the picture to `stem_stride`."""

    def __init__(self, config: InternImage.Config) -> None:
        super().__init__()
        first, second = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[config.stem_stride]
        half = config.channels // 2
        self.conv1 = ConvLast(3, half, 3, first, 1)
        self.norm1 = make_norm(config.norm, half)
        self.act = make_activation(config.act)
        self.conv2 = ConvLast(half, config.channels, 3, second, 1)
        self.norm2 = make_norm(config.norm, config.channels)
        self.drop = nn.Dropout(config.drop)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ho wo c"]:
        x = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        x = self.act(self.norm1(self.conv1(x)))
        return self.drop(self.norm2(self.conv2(x)))

    def inference_form(self) -> nn.Module:
        """Return a copy whose batch norms are parts of the convolutions."""
        return _without_batch_norms(self, ("conv1", "norm1"), ("conv2", "norm2"))


class Downsample(nn.Module):
    """Half the size (see `later_strides`), twice the channels."""

    def __init__(self, config: InternImage.Config, stage: int) -> None:
        super().__init__()
        channels = config.stage_channels(stage)
        self.conv = ConvLast(channels, 2 * channels, 3, config.step_stride(stage), 1, bias=False)
        self.norm = make_norm(config.norm, 2 * channels)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b ho wo c2"]:
        return self.norm(self.conv(x))

    def inference_form(self) -> nn.Module:
        """Return a copy whose batch norm is part of the convolution."""
        return _without_batch_norms(self, ("conv", "norm"))


class Stage(nn.Module):
    """The blocks at one resolution, with further norms among them and a closing one."""

    def __init__(self, config: InternImage.Config, stage: int, drop_path: list[float]) -> None:
        super().__init__()
        channels = config.stage_channels(stage)
        self.remat: Remat = config.remat
        self.blocks = nn.ModuleList(Block(config, stage, chance) for chance in drop_path)
        self.norm_after = config.third_stage_norm_after if stage == 2 else ()
        self.extra_norms = nn.ModuleList(make_norm("layer", channels) for _ in self.norm_after)
        closes = config.block_norm != "post" or config.center_feature_scale
        self.norm = make_norm("layer", channels) if closes else nn.Identity()

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        if self._chains(x):
            return self._chained(x)
        for i, block in enumerate(self.blocks):
            x = recompute(block, x, self.remat)
            if i in self.norm_after:
                x = self.extra_norms[self.norm_after.index(i)](x)
        return self.norm(x)

    def _chains(self, x: Tensor) -> bool:
        """Whether the last addition of every block and the norm after it, the next block's, may be one."""
        first: Any = self.blocks[0]
        norms: list[Any] = [block.norm1 for block in self.blocks]
        # Compiled ones are to be called whole.
        if any(block._compiled_call_impl is not None for block in self.blocks):
            return False
        return first.block_norm == "pre" and not self.norm_after and fuses(x, *self.blocks, *norms, self.norm)

    def _chained(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        norms: list[Any] = [*(block.norm1 for block in self.blocks), self.norm]
        normed = norms[0](x)
        block: Any
        for block, then in zip(self.blocks, norms[1:], strict=True):
            x, normed = block.between_norms(x, normed, then)
        return normed


class Block(CompiledAlone):
    """Two residual branches: the operator, then the MLP."""

    def __init__(self, config: InternImage.Config, stage: int, drop_path: float) -> None:
        super().__init__()
        channels = config.stage_channels(stage)
        self.block_norm = config.block_norm
        self.norm1 = make_norm("layer", channels)
        self.dcn = make_operator(config, stage)
        self.norm2 = make_norm("layer", channels)
        self.mlp = MLP(
            channels,
            int(channels * config.mlp_ratio),
            act=config.act,
            drop=config.drop,
            output_bias=config.output_bias,
        )
        self.drop_path = DropPath(drop_path)
        scale = config.layer_scale
        self.gamma1 = None if scale is None else nn.Parameter(torch.full((channels,), scale))
        self.gamma2 = None if scale is None else nn.Parameter(torch.full((channels,), scale))
        if config.block_norm == "res_post" or config.idle_res_post_norm:
            self.res_norm1 = make_norm("layer", channels)
            self.res_norm2 = make_norm("layer", channels)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        if self.block_norm == "pre":
            x, normed = self._add_then_norm(x, self.dcn(self.norm1(x)), self.gamma1, self.norm2)
            return x + self._branch(self.mlp(normed), self.gamma2)
        if self.block_norm == "post":
            x = self._norm_then_add(x, self.dcn(x), self.gamma1, self.norm1)
            return self._norm_then_add(x, self.mlp(x), self.gamma2, self.norm2)
        x = self._norm_then_add(x, self.dcn(self.norm1(x)), None, self.res_norm1)
        return self._norm_then_add(x, self.mlp(self.norm2(x)), None, self.res_norm2)

    def inference_form(self) -> nn.Module:
        """Return a copy whose layer scales are parts of the weights before them."""
        prepared = with_prepared_layers(self)
        # A plain convolution is its own last layer.
        mixing = getattr(prepared.dcn, "output_proj", prepared.dcn)
        branches: tuple[tuple[Tensor | None, Any, nn.Module], ...] = (
            (prepared.gamma1, prepared.norm1, mixing),
            (prepared.gamma2, prepared.norm2, prepared.mlp.fc2),
        )
        for gamma, norm, linear in branches:
            if gamma is not None:
                last: Any = linear if self.block_norm == "pre" else norm
                scale_output(last, gamma)
        prepared.gamma1 = prepared.gamma2 = None
        return prepared

    def between_norms(
        self, x: Float[Tensor, "b h w c"], normed: Float[Tensor, "b h w c"], then: nn.Module
    ) -> tuple[Float[Tensor, "b h w c"], Float[Tensor, "b h w c"]]:
        """Return what the block makes of `x` and the norm `then` of it; `normed` is the first norm of `x`.

        Only for blocks that normalise before each branch.
        """
        x, normed = self._add_then_norm(x, self.dcn(normed), self.gamma1, self.norm2)
        return self._add_then_norm(x, self.mlp(normed), self.gamma2, then)

    def _add_then_norm(
        self, x: Float[Tensor, "b h w c"], branch: Float[Tensor, "b h w c"], gamma: Tensor | None, norm: Any
    ) -> tuple[Float[Tensor, "b h w c"], Float[Tensor, "b h w c"]]:
        """Return the sum and its norm."""
        if self._fuses(x, gamma, norm):
            return add_layer_norm(x, branch, norm.weight, norm.bias, scale=gamma, eps=norm.eps)
        x = x + self._branch(branch, gamma)
        return x, norm(x)

    def _norm_then_add(
        self, x: Float[Tensor, "b h w c"], branch: Float[Tensor, "b h w c"], gamma: Tensor | None, norm: Any
    ) -> Float[Tensor, "b h w c"]:
        """Return the sum with the norm of the branch."""
        if self._fuses(x, gamma, norm):
            return layer_norm_add(x, branch, norm.weight, norm.bias, scale=gamma, eps=norm.eps)
        return x + self._branch(norm(branch), gamma)

    def _fuses(self, x: Tensor, gamma: Tensor | None, norm: Any) -> bool:
        """Whether addition and norm may be one operator."""
        drops = self.training and self.drop_path.probability > 0
        return type(norm) is nn.LayerNorm and not drops and fuses(x, norm, self.drop_path)

    def _branch(self, x: Float[Tensor, "b h w c"], gamma: Tensor | None) -> Float[Tensor, "b h w c"]:
        return self.drop_path(x if gamma is None else gamma * x)


def _without_batch_norms(module: nn.Module, *pairs: tuple[str, str]) -> nn.Module:
    """A copy in which the convolution of each pair does the work of its norm, if that is a batch norm."""
    prepared = with_prepared_layers(module)
    for conv, norm in pairs:
        if isinstance(getattr(prepared, norm), nn.BatchNorm2d):
            take_in_batch_norm(getattr(prepared, conv), getattr(prepared, norm))
            setattr(prepared, norm, nn.Identity())
    return prepared
