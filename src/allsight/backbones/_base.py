"""What every backbone offers: announced feature maps and the normalisation of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from pydantic import field_validator
from torch import Tensor, nn

from allsight.config import Config, Configured, Family
from allsight.layers.inference import ForInference
from allsight.types import FeatureSpec
from allsight.weights import LoadReport

BACKBONES = Family(
    "backbone",
    {
        "internimage": "allsight.backbones.internimage:InternImage",
        "resnet": "allsight.backbones.resnet:ResNet",
        "vit": "allsight.backbones.vit:ViT",
    },
)

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class DepthLayer:
    """Modules at one depth of a backbone.

    Attributes:
        stage: 0 for the stem, then 1, 2, ...; what leads from one stage to the next belongs to the next.
        modules: What lies at this depth.
    """

    stage: int
    modules: tuple[nn.Module, ...]


class Backbone(ForInference, Configured):
    """Images in, feature maps out, fine to coarse.

    A subclass sets `feature_specs` and implements `forward`.

    Attributes:
        feature_specs: Channels and stride of every map that `forward` returns, in its order.
        load_report: What became of every tensor where the backbone came from published weights, else None.
    """

    family: ClassVar[Family | None] = BACKBONES

    class Config(Config):
        """Settings of every backbone.

        Attributes:
            mean: Mean of red, green and blue with pixel values scaled to 0..1, for uint8 input.
            std: Standard deviation, likewise.
        """

        mean: Triple = (0.485, 0.456, 0.406)
        std: Triple = (0.229, 0.224, 0.225)

        @field_validator("std")
        @classmethod
        def _positive(cls, std: Triple) -> Triple:
            if min(std) <= 0:
                raise ValueError(f"expected three numbers > 0, got {std}")
            return std

    config: Any
    feature_specs: tuple[FeatureSpec, ...]
    load_report: LoadReport | None

    def __init__(self, config: Backbone.Config) -> None:
        super().__init__()
        self.config = config
        self.load_report = None
        self._frozen: tuple[nn.Module, ...] = ()

    def freeze(self, *parts: nn.Module) -> None:
        """Take parts out of training for good: no gradients, and evaluation mode whatever `train()` says.

        What needs no gradient is not recorded either, so leading parts that are frozen cost no memory.
        """
        self._frozen += parts
        for part in parts:
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Compute the feature maps.

        Args:
            images: RGB; uint8 is normalised here with `mean` and `std`, floating point is normalised already.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def layers_in_order(self, compat: str = "none") -> tuple[DepthLayer, ...]:
        """Return the layers, first to last, with every parameter in exactly one.

        Learning rates that depend on depth or stage (`optim.groups`) are given along these. A backbone
        without this can be trained without them.

        Args:
            compat: `none`, or whose table of rates to follow; parameters of no layer then count as a head's.

        Raises:
            NotImplementedError: The backbone does not say, or knows no such table.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not tell its layers (compat={compat}); rates by layer or stage need "
            "its method layers_in_order"
        )

    def normalise(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Turn uint8 RGB into normalised floating point of the parameters' type; pass floating point through.

        Raises:
            TypeError: No tensor.
            ValueError: Not [b, 3, h, w] with a pixel at least, integers other than uint8, whose range nobody
                knows, or floating point of another type than the parameters', autocast aside.
        """
        if not isinstance(images, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"images: expected a tensor [b, 3, h, w], got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(
                "images: expected [b, 3, h, w] of one pixel at least, channels first, "
                f"got {tuple(images.shape)}"
            )
        dtype = next(self.parameters()).dtype
        if images.dtype == dtype:
            return images
        if images.is_floating_point():
            # Autocast brings all but float64 to one type.
            if torch.is_autocast_enabled(images.device.type) and torch.float64 not in (images.dtype, dtype):
                return images
            raise ValueError(
                f"images: expected uint8, or {dtype} like the parameters, got {images.dtype}; use "
                f"images.to({dtype})"
            )
        if images.dtype != torch.uint8:
            raise ValueError(f"images: expected uint8 or floating point, got {images.dtype}")
        mean, std = (
            torch.tensor(v, dtype=dtype, device=images.device).mul_(255).view(3, 1, 1)
            for v in (self.config.mean, self.config.std)
        )
        return (images.to(dtype) - mean) / std
