"""What is said and asked of a composed picture, in the languages there are wordings for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from allsight.data.composing.cutouts import Cutout
from allsight.data.text_annotations import Question

QUARTERS: Final = 4
"""Places of objects: quarters of the picture, in reading order."""


@dataclass(frozen=True)
class Wording:
    """How a language says it.

    Args:
        places: Of the quarters.
        join: Between objects.
        how_many, what_is: Questions; `{place}` stands for a place.
    """

    places: tuple[str, str, str, str]
    join: str
    how_many: str
    what_is: str


WORDINGS: Final[dict[str, Wording]] = {
    "en": Wording(
        ("at the top left", "at the top right", "at the bottom left", "at the bottom right"),
        " and ",
        "how many things are there?",
        "what is {place}?",
    ),
    "de": Wording(
        ("oben links", "oben rechts", "unten links", "unten rechts"),
        " und ",
        "wie viele Dinge sind da?",
        "was ist {place}?",
    ),
}
"""Language -> its words; a further language is a further entry."""

Arrangement = tuple[tuple[int, Cutout], ...]
"""(quarter, cut-out) in reading order."""


def caption(things: Arrangement, language: str) -> str:
    """`a frog at the top left and a car at the bottom right`."""
    wording = WORDINGS[language]
    return wording.join.join(
        f"{cutout.names[language]} {wording.places[quarter]}" for quarter, cutout in things
    )


def questions(rng: np.random.Generator, things: Arrangement, languages: tuple[str, ...]) -> list[Question]:
    """How many things there are and what one of them is, each in one language."""
    first, second = (languages[int(rng.integers(len(languages)))] for _ in range(2))
    quarter, cutout = things[int(rng.integers(len(things)))]
    asked = WORDINGS[second].what_is.format(place=WORDINGS[second].places[quarter])
    return [
        Question(WORDINGS[first].how_many, str(len(things)), "count"),
        Question(asked, cutout.names[second], "which"),
    ]
