"""Operators: functions on tensors, each with one or more implementations chosen at run time.

`status()` tells per operator what this machine would use and why; `use_backend(name)` forces a choice.
"""

from allsight.ops import _native
from allsight.ops._dispatch import (
    Availability,
    Backend,
    BackendStatus,
    Operator,
    current_backend,
    use_backend,
)
from allsight.ops._registration import is_watched
from allsight.ops.add_layer_norm import ADD_LAYER_NORM, add_layer_norm
from allsight.ops.dcnv3 import DCNV3, dcnv3
from allsight.ops.dcnv4 import DCNV4, dcnv4
from allsight.ops.depthwise_norm_act import DEPTHWISE_NORM_ACT, depthwise_norm_act
from allsight.ops.expert_dispatch import EXPERT_DISPATCH, expert_dispatch
from allsight.ops.layer_norm_add import LAYER_NORM_ADD, layer_norm_add
from allsight.ops.ms_deform_attn import MS_DEFORM_ATTN, ms_deform_attn

_OPERATORS: tuple[Operator, ...] = (
    DCNV3,
    DCNV4,
    MS_DEFORM_ATTN,
    DEPTHWISE_NORM_ACT,
    ADD_LAYER_NORM,
    LAYER_NORM_ADD,
    EXPERT_DISPATCH,
)


def status() -> dict[str, BackendStatus]:
    """Return, per operator, the backend that "auto" takes on this machine and the state of all others."""
    return {operator.name: operator.status() for operator in _OPERATORS}


def is_compiled() -> bool:
    """Whether this installation has the compiled CPU kernels."""
    return _native.unusable() is None


__all__ = [
    "Availability",
    "Backend",
    "BackendStatus",
    "add_layer_norm",
    "current_backend",
    "dcnv3",
    "dcnv4",
    "depthwise_norm_act",
    "expert_dispatch",
    "is_compiled",
    "is_watched",
    "layer_norm_add",
    "ms_deform_attn",
    "status",
    "use_backend",
]
