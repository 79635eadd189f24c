"""What every call of an operator is asked before its shapes are looked at."""

from __future__ import annotations

from torch import Tensor


def check_tensors(operator: str, **tensors: object) -> None:
    """Check that each is a tensor of a floating-point type; integers would lose fractions in silence.

    Raises:
        TypeError: One is no tensor, or holds integers, complex numbers or truths; the message names it.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name}: expected a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{operator}: {name}: expected a floating-point type, got {tensor.dtype}")
