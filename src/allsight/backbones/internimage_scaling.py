"""How large an InternImage is and what it computes, without building it; the rule for larger ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from allsight.backbones.internimage import InternImage
from allsight.config import ConfigError

_LARGEST = 1e6


@dataclass(frozen=True)
class PartCost:
    """One part of a backbone: the stem, a stage with its closing norm, or the downsampling after a stage.

    Args:
        name: `stem`, `stage 1` ... as in the paper, `downsample 1` ...
        hw_px: Size of the map it gives.
        parameters: Numbers that are learnt.
        macs: Multiplications with an addition for one picture: convolutions, linear layers, and 5 for each
            point and channel of the operator (four corners, one weight), as the official counter has it.
    """

    name: str
    hw_px: tuple[int, int]
    parameters: int
    macs: int


def costs(config: InternImage.Config, hw_px: tuple[int, int] = (224, 224)) -> tuple[PartCost, ...]:
    """Parameters and work of each part that `config` builds, in the order of the forward pass.

    Args:
        config: Any configuration; stages after the last of `out_stages` are not built.
        hw_px: Height and width of the picture.

    Source: the layers of `InternImage`; the operator's work as in
    OpenGVLab/InternImage:classification/get_flops.py.
    """
    parts = [_stem(config, hw_px)]
    last = max(config.out_stages)
    for stage in range(last + 1):
        parts.append(_stage(config, stage, parts[-1].hw_px))
        if stage < last:
            parts.append(_downsample(config, stage, parts[-1].hw_px))
    return tuple(parts)


def scaled(
    origin: InternImage.Config, phi: float, *, alpha: float = 1.09, beta: float = 1.36
) -> InternImage.Config:
    """The paper's compound rule: `alpha ** phi` times the depth, `beta ** phi` times the width.

    The blocks of stages 1, 2 and 4 stay alike and the third takes the rest, in the proportion of `origin`;
    widths are rounded to whole groups, whose own width stays. With the paper's factors a step of phi makes
    the network about twice as large (alpha * beta ** 1.99 = 2).

    Args:
        origin: Where to start, such as the variant `tiny`; its four stages have depths (n, n, m, n), n <= m.
        phi: How far; 0 gives `origin`, negative ones smaller networks.
        alpha: Factor on the depth for phi = 1.
        beta: Factor on the width for phi = 1.

    Raises:
        ConfigError: `origin` is not stacked by the paper's rules, a factor is not a number above 0, or the
            network would be too large to be written down.

    Source: InternImage, arXiv:2211.05778, section 3.2.
    """
    depths = origin.depths
    if len(depths) != 4 or len({depths[0], depths[1], depths[3]}) != 1 or depths[0] > depths[2]:
        raise ConfigError(f"scaled: depths: expected (n, n, m, n) with n <= m, got {depths}")
    width = origin.channels // origin.groups[0]
    if any(groups * width != origin.stage_channels(i) for i, groups in enumerate(origin.groups)):
        raise ConfigError(f"scaled: groups: expected groups of {width} channels, got {origin.groups}")
    deeper, wider = (_power(name, base, phi) for name, base in (("alpha", alpha), ("beta", beta)))
    total = deeper * (3 * depths[0] + depths[2])
    thin = max(1, round(depths[0] * deeper))
    deep = max(thin, round(total - 3 * thin))
    groups = max(1, round(wider * origin.channels / width))
    return origin.model_copy(
        update={
            "channels": groups * width,
            "depths": (thin, thin, deep, thin),
            "groups": tuple(groups * 2**i for i in range(4)),
        }
    )


def _power(name: str, base: object, phi: object) -> float:
    exponent, factor = _finite("phi", phi), _finite(name, base)
    if factor <= 0:
        raise ConfigError(f"scaled: {name}: expected a number above 0, got {factor:g}")
    if exponent * math.log(factor) > math.log(_LARGEST):
        raise ConfigError(
            f"scaled: phi: {name} ** {exponent:g} is more than {_LARGEST:g}; choose phi nearer to 0"
        )
    return factor**exponent


def _finite(name: str, value: object) -> float:
    try:
        number = value if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:
        number = math.inf
    if isinstance(number, float) and math.isfinite(number):
        return number
    raise ConfigError(f"scaled: {name}: expected a finite number, got {number!r}")


def _stem(config: InternImage.Config, hw_px: tuple[int, int]) -> PartCost:
    half, channels = config.channels // 2, config.channels
    middle = _halved(hw_px) if config.stem_stride > 1 else hw_px
    out = _halved(middle) if config.stem_stride == 4 else middle
    parameters = 9 * 3 * half + half + 2 * half + 9 * half * channels + channels + 2 * channels
    return PartCost("stem", out, parameters, _area(middle) * 27 * half + _area(out) * 9 * half * channels)


def _stage(config: InternImage.Config, stage: int, hw_px: tuple[int, int]) -> PartCost:
    c, depth = config.stage_channels(stage), config.depths[stage]
    hidden = int(c * config.mlp_ratio)
    operator, work = _operator(config, stage)
    mlp = 2 * c * hidden + hidden + c * config.output_bias
    norms = 2 + 2 * (config.block_norm == "res_post" or config.idle_res_post_norm)
    extra = 2 * c * norms + (0 if config.layer_scale is None else 2 * c)
    closing = config.block_norm != "post" or config.center_feature_scale
    further = 2 * c * (closing + (len(config.third_stage_norm_after) if stage == 2 else 0))
    macs = _area(hw_px) * depth * (work + 2 * c * hidden)
    return PartCost(f"stage {stage + 1}", hw_px, depth * (operator + mlp + extra) + further, macs)


def _operator(config: InternImage.Config, stage: int) -> tuple[int, int]:
    """Parameters of one operator, and its multiplications with an addition for one pixel."""
    c, groups = config.stage_channels(stage), config.groups[stage]
    if config.operator == "conv":
        weights = 9 * c * c // groups
        return weights + c, weights
    points = 8 if config.remove_center else 9
    values = 3 * groups * points
    gate = groups if config.center_feature_scale else 0
    kernel = 0 if config.dw_kernel_size is None else config.dw_kernel_size**2
    context = (kernel + 1) * c if kernel else 0
    output = c if config.shared_weights else points * c
    # DCNv4 has rows that fill up its projection and are not computed, and no norm after the convolution.
    idle = -values % 8 if config.operator == "dcnv4" else 0
    norm = 2 * c if config.operator == "dcnv3" else 0
    # Linear layers: into and out of the operator, offsets and weights, the gate.
    weights = c * (c + output + values + gate)
    biases = c + c * config.output_bias + values + gate
    work = weights + kernel * c + 5 * points * c
    return weights + biases + context + norm + idle * (c + 1), work


def _downsample(config: InternImage.Config, stage: int, hw_px: tuple[int, int]) -> PartCost:
    c, out = config.stage_channels(stage), _halved(hw_px) if config.step_stride(stage) == 2 else hw_px
    return PartCost(f"downsample {stage + 1}", out, 18 * c * c + 4 * c, _area(out) * 18 * c * c)


def _halved(hw_px: tuple[int, int]) -> tuple[int, int]:
    return -(-hw_px[0] // 2), -(-hw_px[1] // 2)


def _area(hw_px: tuple[int, int]) -> int:
    return hw_px[0] * hw_px[1]
