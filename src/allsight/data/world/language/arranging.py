"""What is in a picture, before it is a scene: names, colours, sizes and places, no two pictures alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from allsight.config import ConfigError
from allsight.data.world.language.options import Language
from allsight.data.world.language.split import PAIRS, Pair, colours_of, places_of
from allsight.data.world.language.vocabulary import AND, PLACES, SIZES
from allsight.data.world.sampling import Draws
from allsight.data.world.vocabulary import CAPTION_SHAPES, SHAPES

_TRIES = 20
"""Draws that may repeat an earlier picture before one more object is added."""

_STRIDE = 97
"""Shares no factor with the number of pairs of any split, so that all have their turn."""


@dataclass(frozen=True)
class Thing:
    """One object in words."""

    name: str
    colour: str
    size: str
    place: str

    @property
    def words(self) -> tuple[str, str, str, str]:
        """In the order of canonical captions."""
        return self.size, self.colour, self.name, self.place

    @property
    def is_class(self) -> bool:
        """Whether its name is also a class and an answer."""
        return self.name in SHAPES


Arrangement = tuple[Thing, ...]
"""The objects of a picture in reading order; exactly one is large."""


def caption_of(things: Arrangement) -> str:
    """The canonical caption: `small red cube left and large blue fish center`."""
    return f" {AND} ".join(" ".join(thing.words) for thing in things)


def arrange(config: Language.Config, split: str) -> Iterator[Arrangement]:
    """The pictures of a split, in order; each has another canonical caption.

    The large objects go through all pairs of name and colour in turn. A picture depends on those before it,
    not on how many follow.

    Raises:
        ConfigError: There are not as many different pictures as are asked for.
    """
    pairs, seen = PAIRS[split], set()
    for index in range(getattr(config, split)):
        draws = Draws(config.seed, split, "pictures", index)
        fewest, most = config.objects
        count = draws.integer(fewest, most)
        for attempt in range(_TRIES * (most - count + 1)):
            main = pairs[index * _STRIDE % len(pairs)]
            things = _drawn(draws, split, main, count + attempt // _TRIES)
            caption = caption_of(things)
            if caption not in seen:
                break
        else:
            raise ConfigError(
                f"config.{split}: expected at most about {index} pictures of {fewest} to {most} objects, "
                f"since no two may have the same caption; got {getattr(config, split)}"
            )
        seen.add(caption)
        yield things


def _drawn(draws: Draws, split: str, main: Pair, count: int) -> Arrangement:
    things = [Thing(*main, SIZES[-1], draws.choice(places_of(split, main)))]
    while len(things) < count:
        # Names that are classes as often as the others, of which there are more.
        name = draws.choice(SHAPES if draws.chance(0.5) else CAPTION_SHAPES)
        pair = name, draws.choice(colours_of(split, name))
        place = draws.choice(places_of(split, pair))
        if all(place != thing.place for thing in things):
            things.append(Thing(*pair, draws.choice(SIZES[:-1]), place))
    return tuple(sorted(things, key=lambda thing: PLACES.index(thing.place)))
