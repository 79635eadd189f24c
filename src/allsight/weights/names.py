"""Names of tensors: the part under a prefix, where a known name occurs, and long lists in few words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

_SHOWN = 6
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def select_part(weights: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Split weights into the part under `prefix`, without it, and the names of all others.

    A `module.` in front of every name (data-parallel training) is dropped first. Where no name has the
    prefix, everything is the part.
    """
    names = list(weights)
    if names and all(name.startswith("module.") for name in names):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    part = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    if not part:
        return dict(weights), ()
    return part, tuple(name for name in weights if not name.startswith(prefix))


def places_of(anchor: str, names: Iterable[str]) -> list[str]:
    """Return the prefixes, "" or ending in a dot, under which `anchor` occurs among `names`."""
    ends = (name.removesuffix(anchor) for name in names if name.endswith(anchor))
    return [prefix for prefix in ends if not prefix or prefix.endswith(".")]


def in_words(names: Sequence[str]) -> str:
    """A list of names on one line; of many, names that differ only in their numbers are drawn together.

    `levels.0.blocks.0.norm.weight`, `levels.0.blocks.1.norm.weight` become
    `levels.0.blocks.0-1.norm.weight (2)`.
    """
    if len(names) <= _SHOWN:
        return ", ".join(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("*", name), []).append(name)
    shown = list(groups.items())[:_SHOWN]
    text = ", ".join(_drawn_together(pattern, alike) for pattern, alike in shown)
    rest = len(names) - sum(len(alike) for _, alike in shown)
    return text + (f" and {rest} more" if rest else "")


def _drawn_together(pattern: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    columns = zip(*([int(number) for number in _NUMBER.findall(name)] for name in names), strict=True)
    ranges = [str(min(c)) if min(c) == max(c) else f"{min(c)}-{max(c)}" for c in columns]
    for numbers in ranges:
        pattern = pattern.replace("*", numbers, 1)
    return f"{pattern} ({len(names)})"
