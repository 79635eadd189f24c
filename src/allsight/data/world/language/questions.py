"""Questions about a picture and their answers: of five types, and of three simpler ones to learn from.

| type | wordings | answers |
|---|---|---|
| `exist` | is there a red cube? | yes, no |
| `count` | how many objects (red objects, small objects) are there? | 0 to 3 |
| `colour` | what colour is the cube (the large object)? | 8 colours |
| `shape` | what is at the top-left? what is the red object? | 12 names |
| `relation` | is the cube left of (right of, above, below) the red object? | yes, no |
| `there` | is there a cube (a red object, a small object)? | yes, no |
| `where` | where is the cube (the red object)? | 9 places |
| `side` | is the cube left or right of (above or below) the red object? | left, right, above, below |

The last three are there to learn from. Whether two things hold at once is a question whose answer no single
word and no single part of the picture tells anything about, so that it is learnt late or not at all; the
parts it is made of are learnt before.

What a question speaks of is the only one of its kind in the picture. Yes and no are drawn evenly; where the
answer is no, there is the same name in another colour, the same colour with another name, or neither. Names
that only captions say are in no question and no answer. A question that cannot be asked of a picture (a
relation of one object) is left out. No question of `train` or `val` speaks of a held-out pair, and those of
`pairs` that ask whether there is one speak of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from allsight.data.text_annotations import Question
from allsight.data.world.language.arranging import Arrangement, Thing
from allsight.data.world.language.split import PAIRS, Pair
from allsight.data.world.language.vocabulary import COLOURS, PLACES, SIZES
from allsight.data.world.sampling import Draws
from allsight.data.world.vocabulary import SHAPES


def questions_of(draws: Draws, split: str, things: Arrangement) -> tuple[Question, ...]:
    """One question of each type that can be asked of a picture of a split."""
    found = []
    for type, ask in (_ASKING | _SIMPLER).items():
        asked = ask(draws, split, things)
        if asked is not None:
            found.append(Question(f"{asked[0]}?", asked[1], type))
    return tuple(found)


Asked = tuple[str, str] | None


def _exist(draws: Draws, split: str, things: Arrangement) -> Asked:
    classes = tuple(thing for thing in things if thing.is_class)
    if not classes:
        return None
    about = classes[draws.integer(0, len(classes) - 1)]
    is_there = draws.chance(0.5)
    name, colour = (about.name, about.colour) if is_there else _absent(draws, split, things, about)
    return f"is there a {colour} {name}", "yes" if is_there else "no"


def _absent(draws: Draws, split: str, things: Arrangement, about: Thing) -> Pair:
    """A pair that is not in the picture but like one that is, if there is such a one."""
    there = {(thing.name, thing.colour) for thing in things}
    pairs = [pair for pair in PAIRS[split] if pair[0] in SHAPES and pair not in there]
    likeness = draws.integer(0, 2)
    alike = [
        (name, colour)
        for name, colour in pairs
        if (likeness == 0 and name == about.name) or (likeness == 1 and colour == about.colour)
    ]
    choice = alike or pairs
    return choice[draws.integer(0, len(choice) - 1)]


def _count(draws: Draws, split: str, things: Arrangement) -> Asked:
    wording = draws.integer(0, 2)
    if wording == 0:
        return "how many objects are there", str(len(things))
    if wording == 1:
        colour = draws.choice(COLOURS)
        if draws.chance(0.6):
            colour = things[draws.integer(0, len(things) - 1)].colour
        return f"how many {colour} objects are there", str(sum(t.colour == colour for t in things))
    size = draws.choice(SIZES[:-1])
    return f"how many {size} objects are there", str(sum(thing.size == size for thing in things))


def _colour(draws: Draws, split: str, things: Arrangement) -> Asked:
    named = [thing for thing in things if thing.is_class and _is_only(things, "name", thing)]
    if named:
        about = named[draws.integer(0, len(named) - 1)]
        return f"what colour is the {about.name}", about.colour
    sized = [thing for thing in things if _is_only(things, "size", thing)]
    about = sized[draws.integer(0, len(sized) - 1)]
    return f"what colour is the {about.size} object", about.colour


def _shape(draws: Draws, split: str, things: Arrangement) -> Asked:
    classes = [thing for thing in things if thing.is_class]
    if not classes:
        return None
    about = classes[draws.integer(0, len(classes) - 1)]
    if _is_only(things, "colour", about) and draws.chance(0.5):
        return f"what is the {about.colour} object", about.name
    return f"what is at the {about.place}", about.name


def _relation(draws: Draws, split: str, things: Arrangement) -> Asked:
    related = _related(draws, things)
    if related is None:
        return None
    this, that, holds, fails = related
    is_so = draws.chance(0.5)
    way = holds if is_so else fails
    return f"is the {this} {_OF.get(way, way)} the {that}", "yes" if is_so else "no"


def _related(draws: Draws, things: Arrangement) -> tuple[str, str, str, str] | None:
    """Words for two objects, and on which side of the second the first is and is not."""
    if len(things) < 2:
        return None
    first = draws.integer(0, len(things) - 1)
    second = (first + draws.integer(1, len(things) - 1)) % len(things)
    a, b = things[first], things[second]
    this, that = _called(things, a), _called(things, b)
    if this is None or that is None:
        return None
    (row_a, column_a), (row_b, column_b) = (divmod(PLACES.index(thing.place), 3) for thing in (a, b))
    ways = []
    if column_a != column_b:
        ways.append(("left", "right") if column_a < column_b else ("right", "left"))
    if row_a != row_b:
        ways.append(("above", "below") if row_a < row_b else ("below", "above"))
    holds, fails = ways[draws.integer(0, len(ways) - 1)]
    return this, that, holds, fails


def _there(draws: Draws, split: str, things: Arrangement) -> Asked:
    # Both answers are possible to each, so that the wording tells nothing.
    asked = [
        (attribute, parts)
        for attribute, values in _SINGLE
        if all(parts := _parted(values, {getattr(thing, attribute) for thing in things}))
    ]
    if not asked:
        return None
    attribute, (here, absent) = asked[draws.integer(0, len(asked) - 1)]
    is_there = draws.chance(0.5)
    words = here if is_there else absent
    word = draws.choice(words)
    return f"is there a {word if attribute == 'name' else f'{word} object'}", "yes" if is_there else "no"


def _parted(values: tuple[str, ...], here: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that are here, and those that are not."""
    return tuple(v for v in values if v in here), tuple(v for v in values if v not in here)


def _where(draws: Draws, split: str, things: Arrangement) -> Asked:
    named = [thing for thing in things if thing.is_class and _is_only(things, "name", thing)]
    coloured = [thing for thing in things if _is_only(things, "colour", thing)]
    kinds = [some for some in (named, coloured) if some]
    if not kinds:
        return None
    some = kinds[draws.integer(0, len(kinds) - 1)]
    about = some[draws.integer(0, len(some) - 1)]
    return f"where is the {about.name if some is named else f'{about.colour} object'}", about.place


def _side(draws: Draws, split: str, things: Arrangement) -> Asked:
    related = _related(draws, things)
    if related is None:
        return None
    this, that, holds, _ = related
    ways = "left or right of" if holds in ("left", "right") else "above or below"
    return f"is the {this} {ways} the {that}", holds


def _called(things: Arrangement, thing: Thing) -> str | None:
    """Words that fit this object alone; None where neither name nor colour nor size tells it from others."""
    if thing.is_class and _is_only(things, "name", thing):
        return thing.name
    if _is_only(things, "colour", thing):
        return f"{thing.colour} object"
    return f"{thing.size} object" if _is_only(things, "size", thing) else None


def _is_only(things: Arrangement, attribute: str, thing: Thing) -> bool:
    return sum(getattr(t, attribute) == getattr(thing, attribute) for t in things) == 1


_ASKING: Final[dict[str, Callable[[Draws, str, Arrangement], Asked]]] = {
    "exist": _exist,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "relation": _relation,
}

_SIMPLER: Final[dict[str, Callable[[Draws, str, Arrangement], Asked]]] = {
    "there": _there,
    "where": _where,
    "side": _side,
}

TYPES: Final = tuple(_ASKING)
"""The five types."""
SIMPLER: Final = tuple(_SIMPLER)
"""Three simpler types to learn from."""

_SINGLE: Final = (("name", SHAPES), ("colour", COLOURS), ("size", SIZES[:-1]))
"""What is asked about by itself; something large is in every picture."""
_OF: Final = {"left": "left of", "right": "right of"}
