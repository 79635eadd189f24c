"""HTML and SVG from Python, escaped unless it is markup already."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "col", "hr", "img", "input", "meta"})

Value = str | int | float | bool | None


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


Child = str | None


def tag(name: str, /, *children: Child, **attributes: Value) -> Html:
    """An element: `tag("p", "a < b", class_="note")`.

    Args:
        name: Of the element.
        children: Plain text, which is escaped, or Html; None is left out.
        attributes: `class_` and `for_` lose the underscore, inner ones become hyphens; None or False is
            left out, True is written without a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(key if value is True else f'{key}="{escape(text, quote=True)}"')
    opening = f"<{' '.join(words)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{group(children)}</{name}>")


def group(children: Iterable[Child]) -> Html:
    """Children one after the other."""
    return Html("".join(as_markup(child) for child in children if child is not None))


def as_markup(text: str) -> Html:
    """Plain text with everything escaped that HTML would read."""
    return text if isinstance(text, Html) else Html(escape(text, quote=True))


def data_uri(content: bytes, kind: str) -> str:
    """A picture inside the page. `kind` is such as `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
