"""What can be done with the experts of a whole model: merge them for use, make them from a dense model.

Letters: m distinct conditions, e experts.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allsight.config import ConfigError
from allsight.layers import ExpertLinear, RunMix
from allsight.models.uniperceiver.conditions import MODALITIES, TEXT, Conditions, Purpose
from allsight.models.uniperceiver.router import ExpertSettings, Router
from allsight.models.uniperceiver.trunk import Block

if TYPE_CHECKING:
    from allsight.models.uniperceiver.model import UniPerceiver

_IMAGE = "image"
# (modalities of the query, of the target) of the tasks there are: naming a picture, reading a text, both.
_SCHEMAS = (({_IMAGE}, {TEXT}), ({TEXT}, {TEXT}), ({_IMAGE, TEXT}, {TEXT}), ({TEXT}, {_IMAGE}))


def known_attributes() -> Float[Tensor, "m bits"]:
    """The attribute vectors of all tasks that ask about pictures, texts or both, those published too."""
    found: dict[tuple[int, ...], None] = {}
    for inputs, targets in _SCHEMAS:
        for is_target in (False, True):
            purpose = Purpose("", frozenset(inputs), frozenset(targets), is_target)
            for modality in sorted(targets if is_target else inputs):
                for causal in (False, True) if modality == TEXT and not is_target else (False,):
                    found[purpose.attributes(modality, causal=causal)] = None
    return torch.tensor(list(found), dtype=torch.float32)


class Lookup(nn.Module):
    """A router whose choices are known: which merged layer each condition gets.

    Args:
        settings: Of the router it replaces.
        keys: Condition -> number of its layer.
    """

    def __init__(self, settings: ExpertSettings, keys: dict[object, int], tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.settings, self._keys, self.tasks = settings, keys, tasks

    def forward(
        self, x: Float[Tensor, "b t c"], conditions: Conditions, summary: Float[Tensor, "b c"] | None = None
    ) -> RunMix:
        """The layer of each run.

        Raises:
            ConfigError: A condition that was not merged.
        """
        chosen = []
        for key in _keys(self.settings, conditions):
            if key not in self._keys:
                raise ConfigError(
                    f"experts were merged without {self.settings.routing} {key}; name it in merge_experts"
                )
            chosen.append(self._keys[key])
        return RunMix(conditions.runs, x.new_empty(0, 0), tuple(chosen))


def merge_experts(model: UniPerceiver, attributes: Float[Tensor, "m bits"] | None = None) -> UniPerceiver:
    """A copy of a model with one plain layer for each condition in place of experts and routers.

    Its answers are those of the model in evaluation, at the speed of a dense one.

    Args:
        model: With experts that do not look at the data.
        attributes: Attribute vectors that will be asked for; None: those of `known_attributes`.
    Raises:
        ConfigError: Experts are chosen by what the data says, so there is nothing to merge.
    """
    settings = model.config.experts
    if settings is None:
        return copy.deepcopy(model)
    if settings.looks_at_data:
        raise ConfigError(
            f"experts with routing={settings.routing} cannot be merged: each token has its own mix"
        )
    merged = copy.deepcopy(model).eval()
    for block in merged.encoder.trunk.blocks:
        assert isinstance(block, Block)
        if block.attn_router is None or block.mlp_router is None:
            continue
        for name, layers in (
            ("attn_router", (block.attn, "qkv", "proj")),
            ("mlp_router", (block, "fc1", "fc2")),
        ):
            router = getattr(block, name)
            conditions, keys = _all_conditions(router, attributes)
            with torch.no_grad():
                gates = torch.cat([router.gates(each) for each in conditions])
                owner, *names = layers
                for layer in names:
                    _replace(owner, layer, gates)
            setattr(block, name, Lookup(settings, keys, router.tasks))
        for spare in ("attn_spare", "mlp_spare"):
            if hasattr(block, spare):
                delattr(block, spare)
    return merged


def upcycle(model: UniPerceiver, settings: ExpertSettings, *, noise: float = 0.0) -> UniPerceiver:
    """A model with experts that begins where a dense one is: each expert is a copy of its layer.

    With two experts a token or more the answers are the dense model's, since gates sum to 1.

    Args:
        model: A dense model.
        settings: Experts to make.
        noise: Standard deviation of what is added to each copy, in units of that of the layer's weights.
    Raises:
        ConfigError: The model has experts already.
    """
    if model.config.experts is not None:
        raise ConfigError("upcycle: the model has experts already")
    config = model.config.model_copy(update={"experts": settings})
    grown = type(model)(config, model.tasks).to(model.encoder.output.weight)
    given, state = model.state_dict(), grown.state_dict()
    for name, tensor in state.items():
        if name not in given:
            continue
        if tensor.ndim == given[name].ndim:
            tensor.copy_(given[name])
        else:
            tensor.copy_(given[name].expand_as(tensor))
            if noise > 0 and name.endswith("weight"):
                tensor += noise * given[name].std() * torch.randn_like(tensor)
    return grown.train(model.training)


def _all_conditions(
    router: Router, attributes: Float[Tensor, "m bits"] | None
) -> tuple[list[Conditions], dict[object, int]]:
    device = router.choose.weight.device
    nobody = Purpose("", frozenset(), frozenset())
    found: list[Conditions] = []
    one = ((0, 1),)
    if router.settings.routing == "attribute":
        rows = (known_attributes() if attributes is None else attributes).to(device)
        found = [Conditions(one, row[None], (0,), nobody) for row in rows]
    elif router.settings.routing == "modality":
        found = [
            Conditions(one, torch.zeros(1, 0, device=device), (number,), nobody)
            for number in range(len(MODALITIES))
        ]
    else:
        found = [
            Conditions(one, torch.zeros(1, 0, device=device), (0,), Purpose(task, frozenset(), frozenset()))
            for task in router.tasks
        ]
    keys = {_keys(router.settings, conditions)[0]: number for number, conditions in enumerate(found)}
    return found, keys


def _keys(settings: ExpertSettings, conditions: Conditions) -> list[object]:
    """What tells the runs of a sequence apart."""
    if settings.routing == "attribute":
        return list(conditions.attribute_names)
    if settings.routing == "modality":
        return [MODALITIES[number] for number in conditions.modalities]
    return [conditions.purpose.task] * len(conditions.runs)


def _replace(owner: nn.Module, name: str, gates: Float[Tensor, "m e"]) -> None:
    layer = getattr(owner, name)
    assert isinstance(layer, ExpertLinear)
    weight, bias = layer.merged(gates)
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias)
