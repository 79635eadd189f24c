"""Texts that data sets attach to pictures: cleaned, counted, and limited when they are read."""

from __future__ import annotations

from collections.abc import Iterable

from allsight.types import DataError

MAX_CHARACTERS = 10_000
"""A longer text is taken for a fault (a page in place of a caption); readers have an option for it."""


def cleaned(texts: Iterable[str]) -> list[str]:
    """Without white space around them; those of which nothing is left are gone."""
    return [text for text in map(str.strip, texts) if text]


def check_length(texts: Iterable[str], id: str, most: int) -> None:
    """Refuse texts that are too long.

    Raises:
        DataError: One has more than `most` characters.
    """
    for text in texts:
        if len(text) > most:
            raise DataError(
                f"{id}: a text of {len(text)} characters, {text[:40]!r}...; expected at most {most} "
                "(max_characters)",
                id,
            )
