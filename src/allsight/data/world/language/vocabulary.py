"""The words of the language world: what its captions, questions and answers are made of."""

from __future__ import annotations

from typing import Final

from allsight.data.world.vocabulary import CAPTION_SHAPES, SHAPES
from allsight.data.world.vocabulary import SIZES as _HEIGHTS_M

NAMES: Final = SHAPES + CAPTION_SHAPES
"""Names of objects. The first 12 are classes and answers too; the others occur in captions alone."""

COLOURS: Final = ("red", "yellow", "green", "turquoise", "blue", "purple", "pink", "black")
"""Those of the world's colours that are told apart on any ground."""

SIZES: Final = tuple(_HEIGHTS_M)
"""small, medium, large; in each picture one object is large, the main one, and no other is."""

PLACES: Final = (
    "top-left",
    "top",
    "top-right",
    "left",
    "center",
    "right",
    "bottom-left",
    "bottom",
    "bottom-right",
)
"""Thirds of the picture, in reading order."""

NUMBERS: Final = ("0", "1", "2", "3")

ANSWERS: Final = ("yes", "no", *NUMBERS, *COLOURS, *SHAPES)
"""All answers there are to questions of the five types, with up to three objects."""

SIMPLER_ANSWERS: Final = ("yes", "no", *PLACES, "above", "below")
"""Those to the simpler questions."""

AND: Final = "and"
BLANK: Final = "___"
"""A word that was taken out of a masked sentence."""

OTHER_WORDS: Final = (
    "?",
    "a",
    "above",
    "are",
    "at",
    "below",
    "colour",
    "how",
    "is",
    "many",
    "object",
    "objects",
    "of",
    "or",
    "the",
    "there",
    "what",
    "where",
)
"""What questions need beside the words above."""


def tokens() -> tuple[str, ...]:
    """Every word once, in a fixed order."""
    return tuple(dict.fromkeys((*SIZES, *COLOURS, *NAMES, *PLACES, AND, *ANSWERS, *OTHER_WORDS)))
