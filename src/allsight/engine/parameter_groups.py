"""Which learning rate and decay each parameter gets, by its place in the module tree and not by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn

from allsight.backbones._base import Backbone
from allsight.config import Config, ConfigError

Factor = Annotated[float, Field(gt=0)]


class DCNRates(Config):
    """Factors on the learning rate of the layers that steer deformable convolutions."""

    offset: Factor = 1.0
    """Layers that predict where to sample."""
    mask: Factor = 1.0
    """Layers that predict how samples are weighed."""
    center_feature_scale: Factor = 1.0
    """Layers that predict how far un-sampled features are taken instead."""


class Groups(Config):
    """Factors on the learning rate by place in the network; they multiply. Heads keep 1."""

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer of a backbone gets this factor once for every layer after it; the last layer gets 1."""
    dcn_lr_multiplier: DCNRates = DCNRates()
    stage_lr: tuple[Factor, ...] = ()
    """Factor for the stem and for each stage of the backbone, such as [0.1, 0.1, 0.5, 1, 1]; empty: all 1."""
    compat: Literal["none", "official", "official_dense"] = "none"
    """Give every parameter the rate that OpenGVLab/InternImage gives it, oddities included: `official` in
    classification, `official_dense` in detection and segmentation. See docs/training_internimage.md."""

    @model_validator(mode="after")
    def _compat_has_no_stages(self) -> Groups:
        if self.stage_lr and self.compat != "none":
            raise ValueError(f"stage_lr={self.stage_lr}: not with compat={self.compat}, which has none")
        return self

    @property
    def needs_layers(self) -> bool:
        """Whether some factor depends on a backbone's layers."""
        return self.layer_decay < 1 or bool(self.stage_lr) or self.compat != "none"


@dataclass(frozen=True)
class ParameterRow:
    """What the optimiser does with one parameter.

    Args:
        name: In the model.
        shape: Its shape.
        lr_scale: Factor on the run's learning rate.
        weight_decay: Decay per step in units of the learning rate.
    """

    name: str
    shape: tuple[int, ...]
    lr_scale: float
    weight_decay: float


@dataclass(frozen=True)
class ParameterTable:
    """The rows of all trainable parameters, in the model's order; printed, it is a line for each group."""

    rows: tuple[ParameterRow, ...]

    def groups(self) -> dict[tuple[float, float], list[ParameterRow]]:
        """(factor, decay) -> its parameters; the largest factor first, and with decay before without."""
        found: dict[tuple[float, float], list[ParameterRow]] = {}
        for row in self.rows:
            found.setdefault((row.lr_scale, row.weight_decay), []).append(row)
        return dict(sorted(found.items(), key=lambda item: (-item[0][0], -item[0][1])))

    def __getitem__(self, name: str) -> ParameterRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_json(self) -> list[dict[str, Any]]:
        """One plain mapping for each group, with the names of its parameters."""
        return [
            {"lr_scale": scale, "weight_decay": decay, "parameters": [row.name for row in rows]}
            for (scale, decay), rows in self.groups().items()
        ]

    def __str__(self) -> str:
        lines = [f"{'lr x':>10}  {'decay':>6}  {'tensors':>7}  {'numbers':>13}  parameters"]
        for (scale, decay), rows in self.groups().items():
            numbers = sum(_count(row.shape) for row in rows)
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            lines.append(f"{scale:>10.4g}  {decay:>6g}  {len(rows):>7}  {numbers:>13,}  {rows[0].name}{more}")
        return "\n".join(lines)


def parameter_table(model: nn.Module, config: Any) -> ParameterTable:
    """Factor on the learning rate and decay of every trainable parameter; a shared one is taken once.

    What has two or more axes decays; biases, norms, scales and what a module names in
    `no_weight_decay: set[str]` does not.

    Args:
        model: The bare model; it may be on the meta device.
        config: The optimiser's settings, of which `weight_decay` and `groups` are read.
    Raises:
        ConfigError: A factor by layer or stage, and the model has no backbone, one that does not tell its
            layers, or one of another number of stages.
    """
    spared = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "no_weight_decay", ())
    }
    scales = _lr_scales(model, config.groups)
    return ParameterTable(
        tuple(
            ParameterRow(
                name,
                tuple(parameter.shape),
                scales.get(id(parameter), 1.0),
                0.0 if parameter.ndim <= 1 or name in spared else config.weight_decay,
            )
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        )
    )


def parameter_groups(model: nn.Module, config: Any) -> list[dict[str, Any]]:
    """PyTorch's parameter groups, as few as there are pairs of factor and decay in `parameter_table`.

    Each has `lr_scale`, by which whoever sets learning rates multiplies.
    """
    parameters = dict(model.named_parameters())
    return [
        {
            "params": [parameters[row.name] for row in rows],
            "weight_decay": decay,
            "lr_scale": scale,
            "name": f"lr x{scale:.4g}, decay {decay:g}",
        }
        for (scale, decay), rows in parameter_table(model, config).groups().items()
    ]


def _lr_scales(model: nn.Module, groups: Groups) -> dict[int, float]:
    """id of a parameter -> its factor, where it is not 1 by default."""
    scales: dict[int, float] = {}
    if groups.needs_layers:
        found = list(_backbones(model))
        if not found:
            raise ConfigError(
                f"config.optim.groups: {type(model).__name__} has no backbone with layers; leave out "
                "layer_decay, stage_lr and compat"
            )
        for backbone in found:
            scales |= _scales_of_layers(backbone, groups)
    for parts in _sampling_parts(model):
        for factor, module in _dcn_factors(parts, groups):
            for parameter in module.parameters():
                scales[id(parameter)] = scales.get(id(parameter), 1.0) * factor
    return scales


def _backbones(module: nn.Module) -> Iterator[Backbone]:
    """The outermost backbones of a model."""
    if isinstance(module, Backbone):
        yield module
        return
    for child in module.children():
        yield from _backbones(child)


def _scales_of_layers(backbone: Backbone, groups: Groups) -> dict[int, float]:
    kind = type(backbone).__name__
    try:
        layers = backbone.layers_in_order(groups.compat)
    except NotImplementedError as error:
        raise ConfigError(f"config.optim.groups: {error}") from None
    stages = 1 + max(layer.stage for layer in layers)
    if groups.stage_lr and len(groups.stage_lr) != stages:
        raise ConfigError(
            f"config.optim.groups.stage_lr: expected {stages} numbers (the stem and {stages - 1} stages of "
            f"{kind}), got {len(groups.stage_lr)}"
        )
    scales: dict[int, float] = {}
    for place, layer in enumerate(layers):
        factor = groups.layer_decay ** (len(layers) - 1 - place)
        if groups.stage_lr:
            factor *= groups.stage_lr[layer.stage]
        for module in layer.modules:
            scales |= {id(parameter): factor for parameter in module.parameters()}
    lost = [name for name, parameter in backbone.named_parameters() if id(parameter) not in scales]
    if lost and groups.compat == "none":
        raise ConfigError(f"config.optim.groups: {kind}.layers_in_order leaves out {lost[0]}; put it in one")
    return scales


def _sampling_parts(model: nn.Module) -> Iterator[Mapping[str, nn.Module]]:
    """Layers by what they predict, of every module that has `sampling_parts()`."""
    for module in model.modules():
        named = getattr(module, "sampling_parts", None)
        if named is not None:
            yield named()


def _dcn_factors(parts: Mapping[str, nn.Module], groups: Groups) -> Iterator[tuple[float, nn.Module]]:
    rates = groups.dcn_lr_multiplier
    if groups.compat == "official_dense" or (groups.compat == "official" and groups.layer_decay == 1):
        return
    for kind, module in parts.items():
        if groups.compat == "official":
            factor = {"mask": 1.0, "center_feature_scale": rates.center_feature_scale}.get(kind, rates.offset)
        elif kind == "offset_and_mask":
            if rates.offset != rates.mask:
                raise ConfigError(
                    f"config.optim.groups.dcn_lr_multiplier: offset={rates.offset:g} and "
                    f"mask={rates.mask:g} differ, but DCNv4 predicts both by one layer; give both one value"
                )
            factor = rates.offset
        else:
            factor = getattr(rates, kind)
        yield factor, module


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
