"""Which combinations of name, colour and place are where.

| split | pairs of name and colour | places |
|---|---|---|
| `train` | not held out | all but one of each pair |
| `val` | not held out | that one |
| `pairs` | held out: one colour in eight of each name | all |

So a picture of `val` shows combinations that no training picture has, each of a pair that training has; and
nothing of `pairs`, neither picture nor text, is in training. The rule is the same for every seed.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from allsight.data.world.language.vocabulary import COLOURS, NAMES, PLACES

SPLITS: Final = ("train", "val", "pairs")

Pair = tuple[str, str]
"""Name and colour."""

# 3 and 5 share no factor with 8 colours and 9 places: each name loses one colour, each colour four names, and
# the places that a name or a colour loses are spread over all.
_HELD_OUT = {(name, COLOURS[-3 * number % len(COLOURS)]) for number, name in enumerate(NAMES)}
_UNSEEN = {
    (name, colour): PLACES[(2 * n + 5 * c) % len(PLACES)]
    for n, name in enumerate(NAMES)
    for c, colour in enumerate(COLOURS)
}

PAIRS: Final[dict[str, tuple[Pair, ...]]] = {
    "train": tuple(pair for pair in _UNSEEN if pair not in _HELD_OUT),
    "val": tuple(pair for pair in _UNSEEN if pair not in _HELD_OUT),
    "pairs": tuple(pair for pair in _UNSEEN if pair in _HELD_OUT),
}
"""Pairs of name and colour that a split may show."""


@cache
def colours_of(split: str, name: str) -> tuple[str, ...]:
    """Colours in which a split may show a name."""
    return tuple(colour for one, colour in PAIRS[split] if one == name)


@cache
def places_of(split: str, pair: Pair) -> tuple[str, ...]:
    """Where a split may show a pair, in reading order; nowhere if it may not."""
    if pair not in PAIRS[split]:
        return ()
    if split == "train":
        return tuple(place for place in PLACES if place != _UNSEEN[pair])
    return (_UNSEEN[pair],) if split == "val" else PLACES
