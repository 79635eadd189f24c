"""What an operator is asked of its arguments that are no tensors: of the right kind first, then in range.

A number of the wrong kind is refused although it equals one of the right kind: 4.0 groups are somebody's
mistake in a division, and a text is no number.
"""

from __future__ import annotations

import torch

_INTEGERS = (int, torch.SymInt)
"""Those of a call, and those that stand for them during an export."""


def is_integer(value: object) -> bool:
    """Whether a value is an integer, symbolic ones included; truths are none."""
    return isinstance(value, _INTEGERS) and not isinstance(value, bool)


def check_integer(operator: str, name: str, value: object, *, least: int) -> None:
    """Refuse what is no integer, and one below `least`.

    Raises:
        TypeError: No integer; the message names operator and argument.
        ValueError: Too small.
    """
    text = f"{operator}: {name}: expected an integer >= {least}, got {value!r}"
    if not is_integer(value):
        raise TypeError(text)
    if value < least:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(text)


def check_number(operator: str, name: str, value: object) -> None:
    """Refuse what is no number.

    Raises:
        TypeError: Neither an integer nor a floating-point number; the message names operator and argument.
    """
    if not isinstance(value, (float, torch.SymFloat)) and not is_integer(value):
        raise TypeError(f"{operator}: {name}: expected a number, got {value!r}")


def check_truth(operator: str, name: str, value: object) -> None:
    """Refuse what is neither true nor false: of a text, "False" too would count as true.

    Raises:
        TypeError: It is neither; the message names operator and argument.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{operator}: {name}: expected True or False, got {value!r}")
