"""Recompute a module's inner activations in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from allsight.layers.norm import without_statistics
from allsight.ops import current_backend, use_backend

Remat = Literal["none", "block", "selective"]
"""What is recomputed of each block: nothing, everything, or all but what is dear (see `is_kept`)."""

_AGAIN = ContextVar("again", default=False)
_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear"})
_DEFORMABLE = frozenset({"dcnv3", "dcnv4", "ms_deform_attn"})


def recompute(module: nn.Module, x: Tensor, remat: Remat = "block") -> Tensor:
    """Return `module(x)`, keeping less for the backward pass.

    Outputs, gradients, random draws and running statistics are those of a plain call, and the second pass
    uses the operator backend of the first.

    Args:
        remat: `block` keeps only `x`; `selective` also the results of operators that are dear to repeat;
            `none` is the plain call.
    """
    if remat == "none" or not torch.is_grad_enabled():
        return module(x)
    keep_dear = remat == "selective"
    if torch.compiler.is_compiling():
        options: dict[str, Any] = {"context_fn": _selective} if keep_dear else {}
        return checkpoint(module, x, use_reentrant=False, **options)
    backend = current_backend()

    @contextmanager
    def again(inner: AbstractContextManager[Any]) -> Iterator[None]:
        token = _AGAIN.set(True)
        try:
            with inner, use_backend(backend), without_statistics():  # type: ignore[arg-type]
                yield
        finally:
            _AGAIN.reset(token)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        first, second = _selective() if keep_dear else (nullcontext(), nullcontext())
        return first, again(second)

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)


def is_recomputing() -> bool:
    """Whether what runs now has run before, in the forward pass."""
    return _AGAIN.get()


def is_kept(operator: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether `selective` keeps what an operator gives: arithmetic that grows faster than its memory.

    Matrix products, attention, dense convolutions and the deformable operators are kept. Norms, activations,
    additions and depthwise convolutions, which move much memory for little arithmetic, are run again.
    Source: the choice of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
    Models", 2022, section 5, turned to networks whose attention is fused.
    """
    namespace, _, name = operator.name().partition(".")[0].partition("::")
    if namespace == "allsight":
        return name in _DEFORMABLE
    if name == "convolution":
        return arguments[8] == 1
    return name in _PRODUCTS or (name.startswith("_scaled_dot_product") and "backward" not in name)


def _selective() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_kept(operator, arguments) else CheckpointPolicy.PREFER_RECOMPUTE
