"""What the operators are measured against: the official fall-backs in plain PyTorch, and other packages.

They are written in the order of operations of the official code, which is what people run who have no GPU;
`allsight.ops` has references of its own that are laid out better and are safe for coordinates that are not
finite.

Letters: b batch, h w map, g groups, c channels of all groups, p points, m heads, q queries, l levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TORCH_MS_DEFORM_ATTN = "torch-ms-deform-attn"

Shapes = Sequence[tuple[int, int]]


def official_dcnv3(
    value: Float[Tensor, "b h w c"],
    offset: Float[Tensor, "b ho wo gpx2"],
    mask: Float[Tensor, "b ho wo gp"],
    *,
    groups: int,
    softmax: bool,
    offset_scale: float | int = 1.0,
) -> Float[Tensor, "b ho wo c"]:
    """DCNv3 with a 3x3 kernel, stride 1 and padding 1, as the official fall-back computes it.

    Source: OpenGVLab/InternImage:classification/ops_dcnv3/functions/dcnv3_func.py (`dcnv3_core_pytorch`); the
    softmax is that of modules/dcnv3.py.
    """
    batch, rows, columns, _ = offset.shape
    pixels, points = rows * columns, 9
    if softmax:
        mask = mask.reshape(batch, rows, columns, groups, points).softmax(-1)
        mask = mask.reshape(batch, rows, columns, groups * points)
    value = F.pad(value, [0, 0, 1, 1, 1, 1])
    height, width, channels = value.shape[1:]

    # Places are fractions of the padded map; each pixel's own comes first, then its kernel, then the offsets.
    y, x = torch.meshgrid(
        torch.linspace(1.5, 0.5 + rows, rows), torch.linspace(1.5, 0.5 + columns, columns), indexing="ij"
    )
    centers = torch.stack([x.reshape(-1)[None] / width, y.reshape(-1)[None] / height], -1)
    centers = centers.reshape(1, rows, columns, 1, 2)
    taps_x, taps_y = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 3), indexing="ij")
    taps = torch.stack([taps_x / width, taps_y / height], -1).reshape(-1, 1, 2)
    taps = taps.repeat(1, groups, 1).permute(1, 0, 2).reshape(1, 1, 1, groups * points, 2)
    size = torch.tensor([width, height]).reshape(1, 1, 1, 2).repeat(1, 1, 1, groups * points)
    places = (centers + taps * offset_scale).repeat(batch, 1, 1, 1, 1).flatten(3, 4)
    places = places + offset * offset_scale / size

    grid = (2 * places - 1).view(batch, pixels, groups, points, 2).transpose(1, 2).flatten(0, 1)
    maps = value.view(batch, height * width, channels).transpose(1, 2)
    maps = maps.reshape(batch * groups, channels // groups, height, width)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mask = mask.view(batch, pixels, groups, points).transpose(1, 2)
    mask = mask.reshape(batch * groups, 1, pixels, points)
    mixed = (sampled * mask).sum(-1).view(batch, channels, pixels)
    return mixed.transpose(1, 2).reshape(batch, rows, columns, channels).contiguous()


def official_ms_deform_attn(
    value: Float[Tensor, "b s m d"],
    shapes: Shapes,
    locations: Float[Tensor, "b q m l p 2"],
    weights: Float[Tensor, "b q m l p"],
    *,
    softmax: bool,
) -> Float[Tensor, "b q mxd"]:
    """Multi-scale deformable attention as the official fall-back computes it.

    Source: fundamentalvision/Deformable-DETR:models/ops/functions/ms_deform_attn_func.py
    (`ms_deform_attn_core_pytorch`).
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    if softmax:
        weights = normalised(weights)
    grids = 2 * locations - 1
    sampled = []
    for level, (maps, (height, width)) in enumerate(
        zip(value.split([height * width for height, width in shapes], dim=1), shapes, strict=True)
    ):
        maps = maps.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    mixed = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return mixed.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


@cache
def torch_ms_deform_attn() -> Callable[..., Tensor] | str:
    """The package's operator, called like `official_ms_deform_attn`; or why it cannot be used."""
    try:
        from torch_ms_deform_attn import ms_deform_attn  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:
        is_missing = isinstance(error, ModuleNotFoundError)
        return "not installed" if is_missing else f"cannot be used: {error}".split("\n", 1)[0]

    def run(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, *, softmax: bool) -> Tensor:
        sizes, starts = _sizes(tuple(shapes))
        return ms_deform_attn(value, sizes, starts, locations, normalised(weights) if softmax else weights)

    return run


@cache
def _sizes(shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Sizes and first pixels of the levels."""
    sizes = torch.tensor(shapes)
    return sizes, sizes.prod(1).cumsum(0) - sizes.prod(1)


def normalised(weights: Float[Tensor, "b q m l p"]) -> Float[Tensor, "b q m l p"]:
    """Softmax over all points of all levels."""
    return weights.flatten(3).softmax(-1).view(weights.shape)
