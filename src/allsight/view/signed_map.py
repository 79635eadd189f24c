"""Numbers between -1 and 1 as an SVG heat map: blue above 0, vermilion below."""

from __future__ import annotations

import math
from collections.abc import Sequence

from allsight.view.markup import Html, tag

_LETTER_PX = 6.6
_CELL_PX = 34
_MOST_LETTERS = 26


def signed_map(
    rows: Sequence[Sequence[float]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    corner: str,
    what: str,
) -> Html:
    """A table of coloured cells with their numbers; a value that is not a number is a dash.

    Args:
        rows: Cells; colours end at -1 and 1.
        row_names, column_names: Beside and above.
        corner: Words over the names of the rows.
        what: What is shown, for people who hear the page.
    """
    longest = min(max((len(name) for name in row_names), default=1), _MOST_LETTERS)
    side = round(max(longest, len(corner)) * _LETTER_PX) + 10
    tallest = min(max((len(name) for name in column_names), default=1), _MOST_LETTERS)
    top = round(tallest * _LETTER_PX * 0.8) + 18
    width = side + _CELL_PX * len(column_names) + round(tallest * _LETTER_PX * 0.62)
    height = top + _CELL_PX * len(row_names) + 2
    cells = [
        _cell(value, f"{row_names[r]}, {column_names[c]}", side + c * _CELL_PX, top + r * _CELL_PX)
        for r, row in enumerate(rows)
        for c, value in enumerate(row)
    ]
    labels = [tag("text", corner, x=side - 6, y=top - 8, text_anchor="end", class_="quiet")] if corner else []
    for r, name in enumerate(row_names):
        y = top + r * _CELL_PX + (_CELL_PX - 1) / 2
        labels.append(
            tag(
                "text", tag("title", name), _cut(name), x=side - 6, y=f"{y:g}", dy="0.34em", text_anchor="end"
            )
        )
    for c, name in enumerate(column_names):
        place = f"translate({side + c * _CELL_PX + _CELL_PX / 2 + 3:g} {top - 6}) rotate(-52)"
        labels.append(tag("text", tag("title", name), _cut(name), transform=place))
    svg = tag(
        "svg",
        tag("g", *labels, class_="names"),
        *cells,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=what,
        class_="heat",
        style=f"width:{width}px",
    )
    return tag("div", svg, class_="scroll")


def _cell(value: float, name: str, x: int, y: int) -> Html:
    known = math.isfinite(value)
    number = f"{value:.2f}".replace("-0.00", "0.00") if known else "–"
    hint = f"{name}: {number if known else 'not defined'}"
    middle = (_CELL_PX - 1) / 2
    return tag(
        "g",
        tag("title", hint),
        tag(
            "rect",
            x=x,
            y=y,
            width=_CELL_PX - 1,
            height=_CELL_PX - 1,
            fill=_shade(value) if known else "#f4f5f6",
        ),
        tag(
            "text",
            number,
            x=f"{x + middle:g}",
            y=f"{y + middle:g}",
            dy="0.34em",
            text_anchor="middle",
            class_="light" if known and abs(value) > 0.6 else None,
        ),
    )


def _shade(value: float) -> str:
    dark = (8, 74, 120) if value >= 0 else (150, 52, 10)
    strength = min(abs(value), 1.0) ** 0.8
    red, green, blue = (round(255 + (end - 255) * strength) for end in dark)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _cut(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
