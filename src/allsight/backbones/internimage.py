"""InternImage: a convolutional backbone whose operator is DCNv3.

Letters: b batch, h w map, c channels. Maps are channels last [b, h, w, c] inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.backbones import internimage_fitting as fitting
from allsight.backbones import internimage_huggingface as huggingface
from allsight.backbones import internimage_layouts as layouts
from allsight.backbones import internimage_official as official
from allsight.backbones import internimage_recognition as recognition
from allsight.backbones._base import Backbone, DepthLayer
from allsight.backbones.internimage_blocks import Downsample, Stage, Stem
from allsight.backbones.internimage_depth import layers_in_order
from allsight.backbones.internimage_init import start_weights
from allsight.backbones.internimage_operators import check_operator
from allsight.config import Variants
from allsight.layers import (
    ActivationName,
    NormName,
    Remat,
)
from allsight.types import FeatureSpec
from allsight.weights import Source, open_weights, write_weights


def _variant(channels: int, depths: tuple[int, ...], group_channels: int, **changes: Any) -> dict[str, Any]:
    """The fields that all variants set, so that one can replace another."""
    return {
        "operator": "dcnv3",
        "channels": channels,
        "depths": depths,
        "groups": tuple(channels * 2**i // group_channels for i in range(len(depths))),
        "block_norm": "pre",
        "layer_scale": None,
        "offset_scale": 1.0,
        "dw_kernel_size": 3,
        "center_feature_scale": False,
        "output_bias": True,
        "third_stage_norm_after": (),
        **changes,
    }


_POST = {"block_norm": "post", "layer_scale": 1e-5}
_LARGE = {**_POST, "offset_scale": 2.0}
_HUGE = {"dw_kernel_size": 5, "center_feature_scale": True}
_FLASH = {"operator": "dcnv4", "output_bias": False}


class InternImage(Backbone):
    """The InternImage family, T to G, smaller ones, and FlashInternImage (`flash_tiny` to `flash_large`).

    Maps are taken after each stage's closing norm, where it has one, and before its downsampling. Stages with
    `block_norm="post"` and no center feature scale close without one: S, B, L and XL give raw residual sums.

    Source: InternImage, arXiv:2211.05778; OpenGVLab/InternImage:classification/models/intern_image.py.
    FlashInternImage: arXiv:2401.06197; OpenGVLab/DCNv4:classification/models/flash_intern_image.py.
    """

    variants: ClassVar[Variants] = {
        "nano": _variant(16, (1, 1, 2, 1), 16),
        "micro": _variant(32, (1, 1, 3, 1), 16),
        "tiny": _variant(64, (4, 4, 18, 4), 16),
        "small": _variant(80, (4, 4, 21, 4), 16, **_POST),
        "base": _variant(112, (4, 4, 21, 4), 16, **_POST),
        "large": _variant(160, (5, 5, 22, 5), 16, **_LARGE),
        "xlarge": _variant(192, (5, 5, 24, 5), 16, **_LARGE),
        "huge": _variant(
            320, (6, 6, 32, 6), 32, **_HUGE, block_norm="res_post", third_stage_norm_after=(5, 11, 17, 23, 29)
        ),
        "giant": _variant(
            512, (2, 2, 48, 4), 32, **_HUGE, block_norm="post", third_stage_norm_after=tuple(range(5, 48, 6))
        ),
        "flash_tiny": _variant(64, (4, 4, 18, 4), 16, **_FLASH, dw_kernel_size=None),
        "flash_small": _variant(80, (4, 4, 21, 4), 16, **_POST, **_FLASH),
        "flash_base": _variant(112, (4, 4, 21, 4), 16, **_POST, **_FLASH, offset_scale=0.5),
        "flash_large": _variant(160, (5, 5, 22, 5), 16, **_LARGE, operator="dcnv4"),
    }

    class Config(Backbone.Config):
        """Settings of an InternImage.

        Attributes:
            operator: What mixes pixels: the paper's "dcnv3"; "dcnv4", which makes a FlashInternImage; "conv",
                a 3x3 convolution with `groups`, which has no other settings of an operator.
            channels: Width of the first stage; each further stage doubles it.
            depths: Blocks per stage.
            groups: Groups of the operator per stage; each divides its stage's channels.
            mlp_ratio: Hidden width of a block's MLP in units of its channels.
            block_norm: Where a block normalises: before each branch, after it, or (res_post) both.
            idle_res_post_norm: Keep the norms of "res_post" as parameters although they are never used.
                Official networks with `res_post_norm` have them where another flag outranks it.
            layer_scale: Initial value of a learned factor per channel on every branch; None: no such factor.
            offset_scale: Factor on the sampling grid and on the offsets.
            dw_kernel_size: Size of the depth-wise convolution that predicts offsets and weights; odd. None:
                "dcnv4" predicts them without one.
            center_feature_scale: Blend sampled and un-sampled features by a learned gate per group.
            remove_center: Do not sample the middle point of the kernel.
            softmax: Whether the weights of "dcnv3" pass through a softmax over the points (paper's ablation).
            shared_weights: Whether the points of "dcnv3" share one output projection (paper's ablation).
            output_bias: Whether the last linear layers of the operator and of the MLP have biases; those of
                FlashInternImage T, S and B have none.
            third_stage_norm_after: Blocks of the third stage that are followed by a further layer norm.
            norm: Norm of stem, downsampling and depth-wise branch; the blocks' own are always layer norms.
            act: Activation.
            drop: Dropout probability after the stem and in the MLPs.
            drop_path: Probability of stochastic depth, in [0, 1).
            drop_path_rule: Linear: rising from 0 in the first block to `drop_path` in the last; uniform: the
                same in all.
            stem_stride: Input pixels per cell of the first map; 2 or 1 for small pictures.
            later_strides: By how much each step from one stage to the next shrinks the map; 1 keeps small
                pictures from becoming single cells. None: halved each time, as published.
            init_std: Standard deviation of the linear layers' first weights, but for those of the operator.
            residual_init: How large branches start. Depth: each 1 / sqrt(number of branches) of the plain
                start, so that their sum is as large as one; zero: every block starts as the identity. What
                is scaled is the last linear layer, or the weight of the norm that ends the branch.
            frozen_stages: What is not trained: -1 nothing, 0 the stem, k the stem and the first k stages with
                the downsampling after them. Frozen parts stay in evaluation mode.
            out_stages: Stages whose maps are returned, rising, from 0; those after the last are not built.
            remat: What of every block is computed again in the backward pass, to save memory: nothing, all
                (`block`), or all but matrix products and deformable operators (`selective`).
        """

        operator: Literal["dcnv3", "dcnv4", "conv"] = "dcnv3"
        channels: int = Field(default=64, ge=2, multiple_of=2)
        depths: tuple[int, ...] = Field(default=(4, 4, 18, 4), min_length=1)
        groups: tuple[int, ...] = (4, 8, 16, 32)
        mlp_ratio: float = Field(default=4.0, gt=0)
        block_norm: Literal["pre", "post", "res_post"] = "pre"
        idle_res_post_norm: bool = False
        layer_scale: float | None = None
        offset_scale: float = Field(default=1.0, gt=0)
        dw_kernel_size: int | None = Field(default=3, ge=1)
        center_feature_scale: bool = False
        remove_center: bool = False
        softmax: bool = True
        shared_weights: bool = True
        output_bias: bool = True
        third_stage_norm_after: tuple[int, ...] = ()
        norm: NormName = "layer"
        act: ActivationName = "gelu"
        drop: float = Field(default=0.0, ge=0, lt=1)
        drop_path: float = Field(default=0.0, ge=0, lt=1)
        drop_path_rule: Literal["linear", "uniform"] = "linear"
        init_std: float = Field(default=0.02, gt=0)
        residual_init: Literal["plain", "depth", "zero"] = "plain"
        stem_stride: Literal[4, 2, 1] = 4
        later_strides: tuple[Literal[1, 2], ...] | None = None
        frozen_stages: int = Field(default=-1, ge=-1)
        out_stages: tuple[int, ...] = Field(default=(0, 1, 2, 3), min_length=1)
        remat: Remat = "none"

        @model_validator(mode="after")
        def _fits_together(self) -> InternImage.Config:
            stages = len(self.depths)
            if len(self.groups) != stages:
                raise ValueError(f"groups: expected one number per stage ({stages}), got {self.groups}")
            for i, groups in enumerate(self.groups):
                if groups < 1 or self.stage_channels(i) % groups:
                    raise ValueError(
                        f"groups: stage {i} has {self.stage_channels(i)} channels, not divisible by {groups}"
                    )
            if min(self.depths) < 1:
                raise ValueError(f"depths: expected at least one block per stage, got {self.depths}")
            if self.dw_kernel_size is not None and self.dw_kernel_size % 2 == 0:
                raise ValueError(f"dw_kernel_size: expected an odd size, got {self.dw_kernel_size}")
            if self.block_norm == "res_post" and (self.layer_scale is not None or self.idle_res_post_norm):
                raise ValueError(
                    "block_norm: 'res_post' has no layer_scale and no idle norms; officially layer_scale "
                    "switches it off, which is block_norm='pre' with idle_res_post_norm=True"
                )
            if self.residual_init != "plain" and self.layer_scale is not None:
                raise ValueError(
                    f"residual_init: '{self.residual_init}' and layer_scale both make branches start small; "
                    "use one of them"
                )
            if self.later_strides is not None and len(self.later_strides) != stages - 1:
                raise ValueError(
                    f"later_strides: expected one between each two stages ({stages - 1}), got "
                    f"{self.later_strides}"
                )
            check_operator(self)
            _check_rising("out_stages", self.out_stages, stages)
            if self.frozen_stages > max(self.out_stages) + 1:
                raise ValueError(
                    f"frozen_stages: {max(self.out_stages) + 1} stages are built, got {self.frozen_stages}"
                )
            third = self.depths[2] if stages > 2 else 0
            _check_rising("third_stage_norm_after", self.third_stage_norm_after, third)
            return self

        def stage_channels(self, stage: int) -> int:
            """Width of a stage."""
            return self.channels * 2**stage

        def step_stride(self, stage: int) -> int:
            """By how much the map shrinks after a stage."""
            return 2 if self.later_strides is None else self.later_strides[stage]

        def stage_stride(self, stage: int) -> int:
            """Input pixels per cell of a stage's map."""
            return self.stem_stride * prod(self.step_stride(before) for before in range(stage))

        @classmethod
        def from_official_args(cls, args: Mapping[str, Any]) -> InternImage.Config:
            """Translate constructor arguments or the YAML block of the official repository.

            Args:
                args: Arguments of the official `InternImage` class (classification, detection, segmentation),
                    or its YAML: the whole file, its `MODEL` part, or `MODEL.INTERN_IMAGE`. What is not given
                    has the official default of that form. Settings of the head are left to the classifier.

            Raises:
                ConfigError: An argument that InternImage does not have, or one that is not supported.
            """
            return cls(**official.backbone_fields(args))

    config: InternImage.Config

    def __init__(self, config: InternImage.Config) -> None:
        super().__init__(config)
        built = max(config.out_stages) + 1
        chances = _drop_path_chances(config)
        self.stem = Stem(config)
        self.stages = nn.ModuleList(
            Stage(config, i, chances[sum(config.depths[:i]) :][: config.depths[i]]) for i in range(built)
        )
        self.downsamples = nn.ModuleList(Downsample(config, i) for i in range(built - 1))
        self.feature_specs = tuple(
            FeatureSpec(config.stage_channels(i), config.stage_stride(i)) for i in config.out_stages
        )
        start_weights(self)
        if config.frozen_stages >= 0:
            frozen = config.frozen_stages
            self.freeze(self.stem, *self.stages[:frozen], *self.downsamples[:frozen])

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Compute the maps of `out_stages`, each [b, c, ceil(h / stride), ceil(w / stride)].

        Args:
            images: RGB of any size; uint8 is normalised here, floating point is taken as normalised.

        Returns:
            One map per entry of `feature_specs`; channels last in memory (`torch.channels_last`).
        """
        x = self.stem(self.normalise(images))
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.config.out_stages:
                maps.append(x.permute(0, 3, 1, 2))
            if i < len(self.downsamples):
                x = self.downsamples[i](x)
        return tuple(maps)

    def layers_in_order(self, compat: str = "none") -> tuple[DepthLayer, ...]:
        """Return stem and blocks in order; `compat`: as the official code counts (`internimage_depth`)."""
        return layers_in_order(self, compat)

    def blocks_in_order(self) -> list[nn.Module]:
        """Return the blocks of all stages; stem, downsamplings and closing norms are in none."""
        stages: Any = self.stages
        return [block for stage in stages for block in stage.blocks]

    @classmethod
    def from_official(
        cls, source: Source, config: InternImage.Config | None = None, *, ema: bool = False
    ) -> InternImage:
        """Build the backbone of published weights; heads and other parts of the file are skipped.

        Args:
            source: File, folder or state dict: of the official classification code, its Hugging Face export,
                a detector or segmenter around the backbone, a DeepSpeed checkpoint, or of allsight.
            config: What to build; None: recognise the variant from names and shapes. Settings that leave no
                trace in the weights (drop path, remat, another stem stride) need a config.
            ema: Take the averaged weights that a training file keeps beside the others.

        Returns:
            The backbone in float32 with its `load_report`.

        Raises:
            CheckpointError: The weights cannot be read or do not fit; names the tensors.
        """
        found = layouts.find(open_weights(source, ema=ema))
        notes: tuple[str, ...] = ()
        if config is None:
            config, notes = recognition.configure(cls.Config, found, cls.variants)
        with torch.device("meta"):
            model = cls(config)
        last = max(config.out_stages)

        def skip(name: str) -> bool:
            return official.is_head(name) or official.stage_of(name) > last

        model.load_report = fitting.load_published(
            model,
            model.official_names(),
            found,
            config.model_dump(),
            cls.variants,
            what="InternImage",
            skip=skip,
            notes=notes,
        )
        return model

    def official_names(self) -> dict[str, str]:
        """Return own name -> official name for every entry of the state dict."""
        return official.official_names(self.state_dict(), self.config.norm)

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the official names."""
        state = self.state_dict()
        return {name: state[own] for own, name in self.official_names().items()}

    def save_official(self, path: Any) -> None:
        """Write the weights under the official names: `.safetensors`, else a torch file with `model`."""
        write_weights(self.official_state_dict(), path)

    def save_huggingface(self, folder: Any) -> None:
        """Write `model.safetensors` and `config.json` in the form of the official Hugging Face export.

        Raises:
            CheckpointError: The official code has no such network.
        """
        settings = huggingface.settings_of(self.config.model_dump())
        huggingface.write(self.official_state_dict(), settings, folder)


def _drop_path_chances(config: InternImage.Config) -> list[float]:
    """Probability of every block, first to last."""
    blocks = sum(config.depths)
    if config.drop_path_rule == "uniform":
        return [config.drop_path] * blocks
    return [config.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]


def _check_rising(name: str, numbers: tuple[int, ...], end: int) -> None:
    if list(numbers) != sorted(set(numbers)) or any(not 0 <= n < end for n in numbers):
        raise ValueError(f"{name}: expected rising numbers from 0 to {end - 1}, got {numbers}")
