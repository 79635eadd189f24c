"""ResNet: the residual networks that published detectors start from, with deformable stages if wanted.

Letters: b batch, h w map, c channels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.backbones import resnet_official as official
from allsight.backbones._base import Backbone
from allsight.config import Variants
from allsight.layers import DeformConv2d, FrozenBatchNorm2d, Remat, recompute
from allsight.types import FeatureSpec
from allsight.weights import Source, load_mapped, read_weights, select_part, write_weights

Norm = Literal["batch", "frozen"]
_EXPANSION = {"basic": 1, "bottleneck": 4}

CAFFE_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
"""Pixels of Caffe's networks stay in 0..255; only the mean is taken off."""


def _variant(block: str, depths: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    fields = {
        "block": block,
        "depths": depths,
        "stride_in": "3x3",
        "deform_stages": (),
        "channel_order": "rgb",
    }
    return {**fields, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), **changes}


_CAFFE = {"stride_in": "1x1", "channel_order": "bgr", "mean": CAFFE_MEAN, "std": CAFFE_STD}


class ResNet(Backbone):
    """ResNet-18 to 152, and smaller ones. Names of parameters are those that everybody uses.

    Images are RGB for every variant; weights that were trained on BGR get their first convolution turned when
    they are read and turned back when they are written.

    Source: Deep Residual Learning, arXiv:1512.03385; names of pytorch/vision:torchvision/models/resnet.py;
    "caffe" and "dcn" as in open-mmlab/mmdetection:mmdet/models/backbones/resnet.py.
    """

    variants: ClassVar[Variants] = {
        "r18": _variant("basic", (2, 2, 2, 2)),
        "r34": _variant("basic", (3, 4, 6, 3)),
        "r50": _variant("bottleneck", (3, 4, 6, 3)),
        "r101": _variant("bottleneck", (3, 4, 23, 3)),
        "r152": _variant("bottleneck", (3, 8, 36, 3)),
        "r50_caffe": _variant("bottleneck", (3, 4, 6, 3), **_CAFFE),
        "r101_caffe": _variant("bottleneck", (3, 4, 23, 3), **_CAFFE),
        "r101_caffe_dcn": _variant("bottleneck", (3, 4, 23, 3), deform_stages=(2, 3), **_CAFFE),
    }

    class Config(Backbone.Config):
        """Settings of a ResNet.

        Attributes:
            block: Two 3x3 convolutions, or 1x1, 3x3, 1x1.
            depths: Blocks per stage.
            channels: Width of the stem and of the first stage's 3x3 convolutions; doubles at each stage.
            stride_in: Which convolution of a bottleneck halves the map: "3x3" (PyTorch) or "1x1" (Caffe).
            deform_stages: Stages, from 0, whose 3x3 convolutions are deformable (DCNv2).
            channel_order: Order in which published weights of this network take the channels.
            norm: Batch norms that learn, or frozen ones.
            frozen_parts: Parts from the input on that do not learn: 1 the stem, 2 also the first stage ...
            out_stages: Stages whose maps are returned, rising; those after the last are not built.
            remat: What of every block is computed again in the backward pass, to save memory: nothing, all
                (`block`), or all but matrix products and deformable operators (`selective`).
        """

        block: Literal["basic", "bottleneck"] = "bottleneck"
        depths: tuple[int, ...] = Field(default=(3, 4, 6, 3), min_length=1)
        channels: int = Field(default=64, ge=1)
        stride_in: Literal["3x3", "1x1"] = "3x3"
        deform_stages: tuple[int, ...] = ()
        channel_order: Literal["rgb", "bgr"] = "rgb"
        norm: Norm = "batch"
        frozen_parts: int = Field(default=0, ge=0)
        out_stages: tuple[int, ...] = Field(default=(0, 1, 2, 3), min_length=1)
        remat: Remat = "none"

        @model_validator(mode="after")
        def _fits_together(self) -> ResNet.Config:
            stages = len(self.depths)
            if min(self.depths) < 1:
                raise ValueError(f"depths: expected at least one block per stage, got {self.depths}")
            for name in ("out_stages", "deform_stages"):
                chosen = getattr(self, name)
                if list(chosen) != sorted(set(chosen)) or any(not 0 <= s < stages for s in chosen):
                    raise ValueError(f"{name}: expected rising numbers in 0..{stages - 1}, got {chosen}")
            if self.deform_stages and self.block == "basic":
                raise ValueError("deform_stages: needs block='bottleneck'")
            if self.frozen_parts > stages + 1:
                raise ValueError(f"frozen_parts: expected at most {stages + 1}, got {self.frozen_parts}")
            return self

        def stage_channels(self, stage: int) -> int:
            """Width of a stage's map."""
            return self.channels * 2**stage * _EXPANSION[self.block]

    config: ResNet.Config

    def __init__(self, config: ResNet.Config) -> None:
        super().__init__(config)
        self.conv1 = nn.Conv2d(3, config.channels, 7, 2, 3, bias=False)
        self.bn1 = _norm(config, config.channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = config.channels
        for stage in range(max(config.out_stages) + 1):
            blocks = []
            for i in range(config.depths[stage]):
                blocks.append(Block(config, stage, before, stride=2 if stage and not i else 1))
                before = config.stage_channels(stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.feature_specs = tuple(FeatureSpec(config.stage_channels(i), 4 * 2**i) for i in config.out_stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not isinstance(module, DeformConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, DeformConv2d):
                module.reset_parameters()
        for part in self._parts()[: config.frozen_parts]:
            part.requires_grad_(False)

    def _parts(self) -> list[nn.Module]:
        stages = [self.get_submodule(f"layer{i + 1}") for i in range(max(self.config.out_stages) + 1)]
        return [nn.ModuleList([self.conv1, self.bn1]), *stages]

    def blocks_in_order(self) -> list[nn.Module]:
        """Return the blocks of all stages; the stem is in none."""
        return [block for stage in self._parts()[1:] for block in stage.children()]

    def train(self, mode: bool = True) -> ResNet:
        """Frozen parts stay as in evaluation."""
        super().train(mode)
        for part in self._parts()[: self.config.frozen_parts]:
            part.train(False)
        return self

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Compute the maps of `out_stages`, each [b, c, ceil(h / stride), ceil(w / stride)].

        Args:
            images: RGB of any size; uint8 is normalised here, floating point is taken as normalised.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalise(images)))))
        maps = []
        for stage, blocks in enumerate(self._parts()[1:]):
            assert isinstance(blocks, nn.Sequential)
            for block in blocks:
                x = recompute(block, x, self.config.remat)
            if stage in self.config.out_stages:
                maps.append(x)
        return tuple(maps)

    @classmethod
    def from_official(cls, source: Source, config: ResNet.Config | None = None) -> ResNet:
        """Build the backbone of published weights: torchvision's or a detector's of OpenMMLab.

        Args:
            source: File or state dict; `backbone.` or `img_backbone.` in front of the names is understood,
                the classifier's layer and other parts of a file are skipped.
            config: What to build; None: recognise depth and deformable stages (which are taken as Caffe's, as
                no other are published). A network of Caffe without deformable stages needs a config, since
                weights do not show it.
        Raises:
            CheckpointError: The weights do not fit; names the tensors.
        """
        weights = read_weights(source)
        outside: tuple[str, ...] = ()
        for prefix in ("img_backbone.", "backbone."):
            weights, others = select_part(weights, prefix)
            outside += others
        weights = official.current_names(weights)
        if config is None:
            config = cls.Config.variant(official.recognise(weights))
        with torch.device("meta"):
            model = cls(config)
        weights = official.turned(weights, config.channel_order)
        names = {name: name for name in model.state_dict()}
        last = max(config.out_stages) + 1

        def skip(name: str) -> bool:
            return name.startswith("fc.") or official.stage_of(name) > last

        report = load_mapped(model, official.complete(weights, names), names, what="ResNet", skip=skip)
        model.load_report = report.with_skipped(outside)
        return model

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the published names and in the published order of channels."""
        return official.turned(self.state_dict(), self.config.channel_order)

    def save_official(self, path: Any) -> None:
        """Write the weights under the published names: `.safetensors`, else a torch file with `model`."""
        write_weights(self.official_state_dict(), path)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, config: ResNet.Config, stage: int, before: int, *, stride: int) -> None:
        super().__init__()
        width, out = config.channels * 2**stage, config.stage_channels(stage)
        self.num_convs = 3 if config.block == "bottleneck" else 2
        if config.block == "bottleneck":
            first, second = (1, stride) if config.stride_in == "3x3" else (stride, 1)
            self.conv1 = nn.Conv2d(before, width, 1, first, bias=False)
            kind = DeformConv2d if stage in config.deform_stages else nn.Conv2d
            self.conv2 = kind(width, width, 3, stride=second, padding=1, bias=False)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = _norm(config, out)
        else:
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = _norm(config, width)
        self.bn2 = _norm(config, width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(before, out, 1, stride, bias=False), _norm(config, out))
            if stride != 1 or before != out
            else None
        )

    def forward(self, x: Float[Tensor, "b _ _ _"]) -> Float[Tensor, "b _ _ _"]:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.num_convs == 3:
            y = self.bn3(self.conv3(self.relu(y)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _norm(config: ResNet.Config, channels: int) -> nn.Module:
    return FrozenBatchNorm2d(channels) if config.norm == "frozen" else nn.BatchNorm2d(channels)
