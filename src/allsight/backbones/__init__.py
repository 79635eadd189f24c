"""Backbones: images to feature maps. Importing this loads no concrete family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allsight.backbones._base import BACKBONES, Backbone, DepthLayer
    from allsight.backbones.internimage import InternImage
    from allsight.backbones.resnet import ResNet
    from allsight.backbones.vit import ViT

__all__ = ["BACKBONES", "Backbone", "DepthLayer", "InternImage", "ResNet", "ViT"]

_LAZY = {
    "BACKBONES": "_base",
    "Backbone": "_base",
    "DepthLayer": "_base",
    "InternImage": "internimage",
    "ResNet": "resnet",
    "ViT": "vit",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"allsight.backbones.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'allsight.backbones' has no attribute {name!r}")
