"""A question of a user, before a task makes a query of it."""

from __future__ import annotations

from dataclasses import dataclass

from allsight.types.samples import Image, Text, Video


@dataclass(frozen=True)
class Question:
    """What one asks: a picture or clip, a text, or both, and perhaps among what.

    Args:
        seen: The picture or clip.
        text: The text.
        candidates: What may be answered: texts, or pictures or clips; None leaves it to the task.
        names: What the candidates are called in the answer.
        cut: Cut a text that is too long in place of refusing it; None does as the task's settings say.
        max_tokens: Longest text that the model reads; None: not known.
    """

    seen: Image | Video | None = None
    text: Text | None = None
    candidates: tuple[Text | Image | Video, ...] | None = None
    names: tuple[str, ...] = ()
    cut: bool | None = None
    max_tokens: int | None = None

    @property
    def shape(self) -> str:
        """In words, for messages: `a picture and a text, among texts`."""
        things = [kind_of(self.seen)] if self.seen is not None else []
        things += ["a text"] if self.text is not None else []
        said = " and ".join(things) or "nothing"
        if self.candidates:
            said += f", among {kind_of(self.candidates[0]).removeprefix('a ')}s"
        return said


def kind_of(thing: Text | Image | Video) -> str:
    """`a picture`, `a clip` or `a text`."""
    return "a picture" if isinstance(thing, Image) else "a clip" if isinstance(thing, Video) else "a text"
