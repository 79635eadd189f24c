"""Vision transformer, plain: one resolution, global attention.

Letters: b batch, p cells of the patch grid, k cells that are seen, n pictures in one input, c channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.backbones import vit_official as official
from allsight.backbones._base import Backbone, DepthLayer
from allsight.config import Variants
from allsight.layers import AttentionBlock, Remat, grid_places, recompute, sincos_2d
from allsight.layers.norm import LAYER_NORM_EPS
from allsight.types import FeatureSpec
from allsight.weights import Source, load_mapped, read_weights, write_weights


def _variant(channels: int, depth: int, heads: int, patch_px: int) -> dict[str, Any]:
    return {"channels": channels, "depth": depth, "heads": heads, "patch_px": patch_px}


@dataclass(frozen=True)
class Tokens:
    """What a transformer makes of the cells it was shown.

    Args:
        cells: Features of those cells, in the order given.
        summary: The class tokens, one for each picture in the input.
    """

    cells: Float[Tensor, "b k c"]
    summary: Float[Tensor, "b n c"]


class ViT(Backbone):
    """ViT-S, B, L and smaller ones. Names of parameters are those that timm and MAE use.

    Its one map has the stride of the patches. `encode` also takes a part of the cells only, cells hidden by
    a token, and several pictures mixed into one input, as pre-training needs.

    Source: An image is worth 16x16 words, arXiv:2010.11929; S as in DeiT, arXiv:2012.12877; fixed positions
    and first weights of MAE, arXiv:2111.06377; frozen patch projection of MoCo v3, arXiv:2104.02057.
    """

    variants: ClassVar[Variants] = {
        "micro": _variant(96, 4, 3, 8),
        "small": _variant(384, 12, 6, 16),
        "base": _variant(768, 12, 12, 16),
        "large": _variant(1024, 24, 16, 16),
    }

    class Config(Backbone.Config):
        """Settings of a vision transformer.

        Attributes:
            channels: Width of the tokens.
            depth: Blocks.
            heads: Attention heads.
            patch_px: Side of a patch.
            mlp_ratio: Hidden width of a block's MLP in units of `channels`.
            positions: Fixed sines and cosines, for any size; or learnt ones of `size_px`, which other sizes
                get interpolated.
            size_px: Side of the pictures that learnt positions are for.
            freeze_patches: Leave the patch projection as it starts (MoCo v3: training is steadier).
            layer_scale: First value of a learned factor per channel on every branch; None: no such factor.
            drop_path: Probability of stochastic depth, rising from 0 to this in the last block.
            remat: What of every block is computed again in the backward pass, to save memory: nothing, all
                (`block`), or all but matrix products and deformable operators (`selective`).
        """

        channels: int = Field(default=768, ge=4, multiple_of=4)
        depth: int = Field(default=12, ge=1)
        heads: int = Field(default=12, ge=1)
        patch_px: int = Field(default=16, ge=1)
        mlp_ratio: float = Field(default=4.0, gt=0)
        positions: Literal["sincos", "learned"] = "sincos"
        size_px: int = Field(default=224, ge=1)
        freeze_patches: bool = False
        layer_scale: float | None = None
        drop_path: float = Field(default=0.0, ge=0, lt=1)
        remat: Remat = "none"

        @model_validator(mode="after")
        def _fits_together(self) -> ViT.Config:
            if self.channels % self.heads:
                raise ValueError(f"heads: expected a divisor of channels={self.channels}, got {self.heads}")
            if self.positions == "learned" and self.size_px % self.patch_px:
                raise ValueError(f"size_px: expected a multiple of patch_px={self.patch_px}")
            return self

    config: ViT.Config

    def __init__(self, config: ViT.Config) -> None:
        super().__init__(config)
        width, depth = config.channels, config.depth
        self.patch_embed = PatchEmbed(width, config.patch_px)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed: nn.Parameter | None = None
        if config.positions == "learned":
            cells = (config.size_px // config.patch_px) ** 2
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + cells, width))
        self.blocks = nn.ModuleList(
            AttentionBlock(
                width,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                drop_path=config.drop_path * i / max(depth - 1, 1),
                layer_scale=config.layer_scale,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.no_weight_decay = {"cls_token", "pos_embed"}
        self.feature_specs = (FeatureSpec(width, config.patch_px),)
        self._start_weights()
        if config.freeze_patches:
            self.freeze(self.patch_embed)

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Compute the one map, without the class token.

        Args:
            images: RGB, sides divisible by `patch_px`; uint8 is normalised here, floating point is taken as
                normalised.
        """
        height, width = (side // self.config.patch_px for side in images.shape[2:])
        return (self.encode(images).cells.transpose(1, 2).unflatten(2, (height, width)),)

    def encode(
        self,
        images: Shaped[Tensor, "b 3 h w"],
        *,
        visible: Int64[Tensor, "b k"] | None = None,
        hidden: Bool[Tensor, "b p"] | None = None,
        token: Float[Tensor, " c"] | None = None,
        owners: Int64[Tensor, "b p"] | None = None,
        num_pictures: int = 1,
        separate: bool = True,
    ) -> Tokens:
        """Compute the tokens.

        Args:
            images: As `forward`.
            visible: Cells to show, each once; the others cost nothing. None: all, in order.
            hidden: Cells that the network sees `token` in place of.
            token: What hidden cells look like.
            owners: Which of `num_pictures` pictures each cell comes from; every picture has a class token.
            num_pictures: Pictures that `images` are mixed of.
            separate: Cells and class tokens see those of their own picture only.
        """
        x = self.patch_embed(self.normalise(images))
        if hidden is not None:
            assert token is not None
            x = torch.where(hidden[..., None], token, x)
        height, width = (side // self.config.patch_px for side in images.shape[2:])
        positions, summary_position = self._positions(height, width, x)
        x = x + positions
        if visible is not None:
            x = x.take_along_dim(visible[..., None], 1)
        summary = (self.cls_token + summary_position).expand(len(x), num_pictures, -1)
        mask = None
        if owners is not None and separate:
            own = owners if visible is None else owners.gather(1, visible)
            numbers = torch.arange(num_pictures, device=own.device).expand(len(x), -1)
            own = torch.cat([numbers, own], 1)
            mask = own[:, :, None] == own[:, None, :]
        x = torch.cat([summary, x], 1)
        for block in self.blocks:
            if self.config.remat == "none":
                x = block(x, mask)
            else:
                x = recompute(_Masked(block, mask), x, self.config.remat)
        x = self.norm(x)
        return Tokens(x[:, num_pictures:], x[:, :num_pictures])

    def layers_in_order(self, compat: str = "none") -> tuple[DepthLayer, ...]:
        """Return what makes the tokens, then the blocks; the last norm belongs to the last block."""
        if compat != "none":
            raise NotImplementedError(f"ViT knows no table of learning rates compat={compat}")
        tokens = nn.ParameterList(p for p in (self.cls_token, self.pos_embed) if p is not None)
        layers = [DepthLayer(0, (self.patch_embed, tokens))]
        for block in self.blocks[:-1]:
            layers.append(DepthLayer(1, (block,)))
        return (*layers, DepthLayer(1, (self.blocks[-1], self.norm)))

    @classmethod
    def from_official(cls, source: Source, config: ViT.Config | None = None) -> ViT:
        """Build the backbone of published weights of timm, MAE, MoCo v3 and their like.

        Decoders, heads and fixed positions in the file are skipped.

        Args:
            source: File or state dict.
            config: What to build; None: recognise width, depth and positions, with 64 channels a head.
        Raises:
            CheckpointError: The weights do not fit; names the tensors.
        """
        weights = official.plain(read_weights(source))
        if config is None:
            config = cls.Config(**official.recognise(weights))
        with torch.device("meta"):
            model = cls(config)
        names = {name: name for name in model.state_dict()}
        fixed = config.positions == "sincos"
        model.load_report = load_mapped(
            model, weights, names, what="ViT", skip=lambda name: official.is_outside(name, fixed=fixed)
        )
        return model

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the published names."""
        return dict(self.state_dict())

    def save_official(self, path: Any) -> None:
        """Write the weights under the published names: `.safetensors`, else a torch file with `model`."""
        write_weights(self.official_state_dict(), path)

    def _positions(
        self, height: int, width: int, like: Tensor
    ) -> tuple[Float[Tensor, "1 p c"], Float[Tensor, "1 1 c"] | float]:
        if self.pos_embed is None:
            rows, columns = grid_places(height, width, device=like.device)
            return sincos_2d(rows, columns, self.config.channels).to(like.dtype)[None], 0.0
        side = self.config.size_px // self.config.patch_px
        first, cells = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        if (height, width) != (side, side):
            square = cells.transpose(1, 2).unflatten(2, (side, side))
            resized = F.interpolate(square, (height, width), mode="bicubic", align_corners=False)
            cells = resized.flatten(2).transpose(1, 2)
        return cells, first

    def _start_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        weight = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.view(len(weight), -1))
        nn.init.normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        # Queries, keys and values each start as a matrix of their own (MoCo v3).
        for block in self.blocks:
            assert isinstance(block, AttentionBlock)
            bound = math.sqrt(6 / (2 * self.config.channels))
            nn.init.uniform_(block.attn.qkv.weight, -bound, bound)


class PatchEmbed(nn.Module):
    """A linear map of the pixels of each patch."""

    def __init__(self, channels: int, patch_px: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.proj = nn.Conv2d(3, channels, patch_px, patch_px)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p c"]:
        height, width = images.shape[2:]
        if height % self.patch_px or width % self.patch_px:
            raise ValueError(
                f"images: expected sides divisible by the patch of {self.patch_px} px, got {height} x {width}"
            )
        return self.proj(images).flatten(2).transpose(1, 2)


class _Masked(nn.Module):
    """A block with its mask, as `recompute` takes it."""

    def __init__(self, block: nn.Module, mask: Tensor | None) -> None:
        super().__init__()
        self.block, self.mask = block, mask

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.mask)
