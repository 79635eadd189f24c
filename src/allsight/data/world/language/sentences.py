"""Texts about a picture: captions in other words, and sentences with words taken out."""

from __future__ import annotations

from dataclasses import dataclass

from allsight.data.world.language.arranging import Arrangement, Thing
from allsight.data.world.language.vocabulary import AND, BLANK
from allsight.data.world.sampling import Draws

_DROPPED = 0.4
"""How often a short caption leaves out an attribute, or an object."""
_TAKEN = 0.3
"""Share of the words of a masked sentence that are taken out."""
_KINDS = ("size", "colour", "name", "place")


@dataclass(frozen=True)
class MaskedSentence:
    """A canonical caption without some of its words.

    Args:
        text: With `BLANK` for each of them.
        answers: The words.
        kinds: What each is: size, colour, name or place.
    """

    text: str
    answers: tuple[str, ...]
    kinds: tuple[str, ...]


def reordered(draws: Draws, things: Arrangement) -> str:
    """All that the canonical caption says, the four words of each object in any order."""
    return f" {AND} ".join(" ".join(_shuffled(draws, thing.words)) for thing in things)


def shortened(draws: Draws, things: Arrangement) -> str:
    """A caption that leaves out objects and attributes; an object keeps two words or more, since its name
    alone would be a label."""
    kept = [thing for thing in things if thing.size == "large" or not draws.chance(_DROPPED)]
    return f" {AND} ".join(_some_words(draws, thing) for thing in kept)


def masked(draws: Draws, things: Arrangement) -> MaskedSentence:
    """The canonical caption without some words, at least one; names that only captions say stay."""
    words = [
        (word, kind, kind != "name" or thing.is_class)
        for thing in things
        for word, kind in zip(thing.words, _KINDS, strict=True)
    ]
    free = [number for number, (_, _, may_go) in enumerate(words) if may_go]
    taken = {number for number in free if draws.chance(_TAKEN)} or {free[draws.integer(0, len(free) - 1)]}
    shown = [BLANK if number in taken else word for number, (word, _, _) in enumerate(words)]
    objects = (" ".join(shown[start : start + 4]) for start in range(0, len(shown), 4))
    gone = [words[number] for number in sorted(taken)]
    return MaskedSentence(
        f" {AND} ".join(objects), tuple(word for word, _, _ in gone), tuple(kind for _, kind, _ in gone)
    )


def _some_words(draws: Draws, thing: Thing) -> str:
    words = [word for word in thing.words if word == thing.name or not draws.chance(_DROPPED)]
    if len(words) > 1:
        return " ".join(words)
    attribute = draws.choice((thing.size, thing.colour, thing.place))
    return f"{thing.name} {attribute}" if attribute == thing.place else f"{attribute} {thing.name}"


def _shuffled(draws: Draws, words: tuple[str, ...]) -> list[str]:
    left, found = list(words), []
    while left:
        found.append(left.pop(draws.integer(0, len(left) - 1)))
    return found
