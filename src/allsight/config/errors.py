"""The configuration error, and the nearest right name to put into it."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A setting is wrong. One line per fault: full path, what was expected, what was given."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'optim'?` for the nearest of `known`, else a list of them when it is short."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; there are: {', '.join(names)}" if 0 < len(names) <= 40 else ""
