"""What mixes the pixels of an InternImage block: DCNv3, FlashInternImage's DCNv4, or a convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from allsight.layers import ConvLast, DCNv3, DCNv4

if TYPE_CHECKING:
    from allsight.backbones.internimage import InternImage


def make_operator(config: InternImage.Config, stage: int) -> nn.Module:
    """The operator of one block of a stage, on maps [b, h, w, c] of the stage's width."""
    channels, groups = config.stage_channels(stage), config.groups[stage]
    if config.operator == "conv":
        return ConvLast(channels, channels, 3, 1, 1, groups=groups)
    if config.operator == "dcnv4":
        return DCNv4(
            channels,
            groups,
            offset_scale=config.offset_scale,
            dw_kernel_size=config.dw_kernel_size,
            center_feature_scale=config.center_feature_scale,
            remove_center=config.remove_center,
            output_bias=config.output_bias,
        )
    return DCNv3(
        channels,
        groups,
        offset_scale=config.offset_scale,
        dw_kernel_size=config.dw_kernel_size,
        act=config.act,
        norm=config.norm,
        center_feature_scale=config.center_feature_scale,
        remove_center=config.remove_center,
        softmax=config.softmax,
        shared_weights=config.shared_weights,
    )


def check_operator(config: InternImage.Config) -> None:
    """Refuse settings that the operator does not have, so that none is silently without effect.

    Raises:
        ValueError: Names the setting and what the operator takes.
    """
    operator = config.operator
    if operator != "dcnv3" and not config.softmax:
        raise ValueError(f"softmax: False is for operator='dcnv3'; '{operator}' never has a softmax")
    if operator != "dcnv3" and not config.shared_weights:
        raise ValueError(f"shared_weights: False is for operator='dcnv3', got '{operator}'")
    if operator != "dcnv4" and not config.output_bias:
        raise ValueError(f"output_bias: False is for operator='dcnv4', got '{operator}'")
    if operator == "dcnv3" and config.dw_kernel_size is None:
        raise ValueError("dw_kernel_size: 'dcnv3' needs one, such as 3; None is for operator='dcnv4'")
    if not config.shared_weights and config.center_feature_scale:
        raise ValueError("shared_weights: False does not go with center_feature_scale=True")
    if operator == "conv":
        samples = {
            "offset_scale": config.offset_scale != 1.0,
            "center_feature_scale": config.center_feature_scale,
            "remove_center": config.remove_center,
            "dw_kernel_size": config.dw_kernel_size not in (None, 3),
        }
        for name, is_set in samples.items():
            if is_set:
                raise ValueError(
                    f"{name}: operator='conv' samples a fixed grid and predicts nothing; leave the default"
                )
