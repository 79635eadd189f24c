"""What deformable layers look at: where they read the picture, how far offsets move, which samples count.

Letters: b batch, h w map, g groups, p points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from allsight.backbones import Backbone
from allsight.layers import DCNv3, DCNv4
from allsight.layers.deformable import Sampling
from allsight.ops.dcnv3 import sampling_points

DEFORMABLE = (DCNv3, DCNv4)


@dataclass(frozen=True)
class LayerSampling:
    """One deformable layer on a batch of pictures.

    Args:
        name: Of the module.
        stage: From 1, by the size of the map.
        stride: Pixels of the picture from cell to cell; cell i is centered on pixel i * stride.
        sampling: What it reads, in cells.
    """

    name: str
    stage: int
    stride: int
    sampling: Sampling

    def points_px(self) -> Float[np.ndarray, "b h w g p 2"]:
        """Where it reads, (x, y) in pixels of the picture."""
        return self.sampling.points_xy.cpu().numpy() * self.stride

    def displacement_px(self) -> Float[np.ndarray, "b h w g p"]:
        """How far offsets move each point from its place on the regular grid, in pixels of the picture."""
        points, geometry = self.sampling.points_xy, self.sampling.geometry
        still = sampling_points(points.new_zeros((1, *points.shape[1:3], points[0, 0, 0].numel())), geometry)
        return (points - still).norm(dim=-1).cpu().numpy() * self.stride

    def shares(self) -> Float[np.ndarray, "b h w g p"]:
        """How much each sample counts, at least 0, adding up to 1 over the points."""
        weights = self.sampling.weights.abs().double()
        return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)).cpu().numpy()


@dataclass(frozen=True)
class LayerStatistics:
    """A deformable layer in numbers, over all pictures, places, groups and points.

    Args:
        name, stage, stride: As of `LayerSampling`.
        displacement_px: 10th, 50th and 90th percentile of the displacement in pixels of the picture.
        reach_px: Root mean square distance of what is read from the place it is read for, by weight.
        points_used: Effective number of points, exp(entropy of their shares); 1 to the kernel's points.
        outside: Share of the weight that lies outside the map, where everything is zero.
    """

    name: str
    stage: int
    stride: int
    displacement_px: tuple[float, float, float]
    reach_px: float
    points_used: float
    outside: float


@torch.no_grad()
def sample_layers(
    backbone: Backbone, images: Shaped[Tensor, "b 3 h w"], *, which: Sequence[str] | None = None
) -> list[LayerSampling]:
    """Run pictures through a backbone and keep what each deformable layer samples.

    Args:
        backbone: In evaluation mode.
        images: As the backbone takes them.
        which: Names of the layers to keep; None keeps all, which is much for many or large pictures.
    """
    found: list[tuple[str, Sampling, float]] = []

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            sampling = module.sampling(inputs[0])
            found.append((name, sampling, images.shape[2] / inputs[0].shape[1]))

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in backbone.named_modules()
        if isinstance(module, DEFORMABLE) and (which is None or name in which)
    ]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    known = sorted({spec.stride for spec in backbone.feature_specs})
    layers = []
    for name, sampling, measured in found:
        # Maps are rounded up, so small ones measure a little less than their stride.
        stride = min(known, key=lambda s: abs(np.log2(s / measured)))
        layers.append(LayerSampling(name, known.index(stride) + 1, stride, sampling))
    return layers


def statistics(layers: Sequence[LayerSampling]) -> list[LayerStatistics]:
    """The numbers of layers, in their order."""
    return [_statistics(layer) for layer in layers]


def _statistics(layer: LayerSampling) -> LayerStatistics:
    moved, shares, points = layer.displacement_px(), layer.shares(), layer.points_px()
    rows, columns = points.shape[1:3]
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    centers = np.stack([x, y], axis=-1)[None, :, :, None, None] * layer.stride
    squared = ((points - centers) ** 2).sum(-1)
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(-1)
    far = np.array([columns, rows]) * layer.stride
    outside = ((points <= -layer.stride) | (points >= far)).any(-1)
    low, middle, high = (float(value) for value in np.percentile(moved, (10, 50, 90)))
    return LayerStatistics(
        name=layer.name,
        stage=layer.stage,
        stride=layer.stride,
        displacement_px=(low, middle, high),
        reach_px=float(np.sqrt((squared * shares).sum(-1).mean())),
        points_used=float(np.exp(entropy).mean()),
        outside=float((outside * shares).sum(-1).mean()),
    )


def seen_from(
    layers: Sequence[LayerSampling],
    yx: tuple[int, int],
    *,
    paths: int = 3000,
    picture: int = 0,
    seed: int = 0,
) -> Float[np.ndarray, "n 2"]:
    """Pixels (x, y) that one place of the last layer sees through all layers given, which follow each other.

    Paths are followed down: at each layer a group is drawn, then a point by its share of the weight, and the
    layer below is entered at the cell nearest to it; between stages one of the nine taps of the convolution
    that halves the map is drawn. So dots lie as dense as what they stand for counts. Identities around the
    layers are not followed. With three layers this is the figure of Deformable ConvNets (arXiv:1703.06211,
    figure 6), with weights.

    Args:
        layers: First to last.
        yx: Row and column of the cell in the last layer's map.
        paths: How many to draw.
        picture: Row of the batch.
        seed: Of the draws.
    """
    draws = np.random.default_rng(seed)
    at, stride = np.tile(np.array([yx[1], yx[0]], dtype=np.float64), (paths, 1)), layers[-1].stride
    for layer in reversed(layers):
        while stride > layer.stride:
            at, stride = 2 * at + draws.integers(-1, 2, size=at.shape), stride // 2
        points, shares = layer.sampling.points_xy[picture].cpu().numpy(), layer.shares()[picture]
        x, y = (
            np.clip(np.rint(at[:, axis]).astype(int), 0, side - 1)
            for axis, side in ((0, points.shape[1]), (1, points.shape[0]))
        )
        group = draws.integers(points.shape[2], size=paths)
        ladder = shares[y, x, group].cumsum(-1)
        point = (draws.random(paths)[:, None] > ladder).sum(-1).clip(max=points.shape[3] - 1)
        at = points[y, x, group, point].astype(np.float64)
    return at * stride


def by_stage(layers: Sequence[LayerSampling]) -> dict[int, list[LayerSampling]]:
    """Stage -> its layers in order."""
    stages: dict[int, list[LayerSampling]] = {}
    for layer in layers:
        stages.setdefault(layer.stage, []).append(layer)
    return stages


def backbone_of(model: nn.Module) -> Backbone | None:
    """The first backbone within a model."""
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)
