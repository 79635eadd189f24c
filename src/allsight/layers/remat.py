"""Recompute a module's inner activations in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from allsight.layers.norm import without_statistics
from allsight.ops import current_backend, use_backend


def recompute(module: nn.Module, x: Tensor) -> Tensor:
    """Return `module(x)`, keeping only `x` for the backward pass.

    Outputs, gradients, random draws and running statistics are those of a plain call, and the second pass
    uses the operator backend of the first.
    """
    if not torch.is_grad_enabled():
        return module(x)
    if torch.compiler.is_compiling():
        return checkpoint(module, x, use_reentrant=False)
    backend = current_backend()

    @contextmanager
    def again() -> Iterator[None]:
        with use_backend(backend), without_statistics():  # type: ignore[arg-type]
            yield

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), again()

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)
