"""Faster ways through layers that hold where no gradient is wanted.

`fuses` says whether a layer may take several of its steps as one operator of `allsight.ops` in this call;
layers do so by themselves. `prepare_for_inference` also changes how weights are kept, which only pays if it
is done once.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from allsight import ops

_Model = TypeVar("_Model", bound=nn.Module)


def fuses(x: Tensor, *steps: nn.Module) -> bool:
    """Whether these steps may be taken as one operator: on a CPU with compiled kernels, and nobody notices.

    Not where gradients are recorded (the operators' own gradients bring nothing), under autocast, when a
    program is traced or looked at (it then consists of PyTorch's operators), or where a hook waits for a
    step.
    """
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and not torch.is_autocast_enabled("cpu")
        and ops.current_backend() in ("auto", "cpu")
        and ops.is_compiled()
        and not ops.is_watched((x,))
        and not torch.jit.is_tracing()
        and not any(step._forward_hooks or step._forward_pre_hooks for step in steps)
        and not (torch.is_grad_enabled() and (x.requires_grad or _any_needs_gradient(steps)))
    )


def _any_needs_gradient(modules: tuple[nn.Module, ...]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


@runtime_checkable
class Preparable(Protocol):
    """A layer that has a faster form for inference."""

    def for_inference(self) -> nn.Module:
        """Return a layer for evaluation only, with the outputs of this one; this one stays as it is."""
        ...


class InferenceOnly(nn.Module):
    """Base of layers that `prepare_for_inference` puts in: they have no training mode and no gradients."""

    def train(self, mode: bool = True) -> InferenceOnly:
        """Refuse training; `eval()` is fine.

        Raises:
            RuntimeError: `mode` is true.
        """
        if mode:
            raise RuntimeError(
                f"{type(self).__name__}: this model was prepared for inference and cannot be trained; "
                "train the model that it was prepared from"
            )
        return super().train(False)


def prepare_for_inference(model: _Model) -> _Model:
    """Return a copy of a model that is in evaluation mode for good and faster, with the same outputs.

    Every layer that knows a faster form of itself gives it (`for_inference`): a DCNv3 layer predicts offsets
    and weights by one matrix product. Weights are copied and laid out anew, so the copy's state dict is not
    that of the model; the model itself is left as it is. Outputs differ by rounding only.

    Args:
        model: Any module, such as an `InternImage` or a classifier with one.

    Returns:
        The copy; `train()` on it is an error, and its parameters take no gradients.

    Example:
        >>> import torch
        >>> from allsight.layers import DCNv3
        >>> layer, x = DCNv3(8, groups=2), torch.ones(1, 4, 4, 8)
        >>> torch.allclose(prepare_for_inference(layer)(x), layer(x), atol=1e-6)
        True
    """
    if isinstance(model, Preparable):
        prepared: Any = model.for_inference()
    else:
        prepared = copy.deepcopy(model)
        _replace_children(prepared)
    return prepared.eval().requires_grad_(False)


def _replace_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, Preparable):
            setattr(module, name, child.for_inference())
        else:
            _replace_children(child)
