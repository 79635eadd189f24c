"""A confusion table as an SVG heat map, and what follows from it for each class."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from allsight.view.figures import compact, count
from allsight.view.markup import Html, group, tag

_MOST_CLASSES = 40
_LETTER_PX = 6.6


def heat_map(confusion: Float64[np.ndarray, "c c"], classes: tuple[str, ...]) -> Html:
    """The table with each row as shares of its truth; counts are shown under the pointer.

    Beyond 40 classes only those with the most mistakes are drawn.

    Args:
        confusion: Counts; rows truth, columns answer.
        classes: A name for each row.
    """
    kept, note = np.arange(len(confusion)), None
    totals = confusion.sum(axis=1)
    if len(confusion) > _MOST_CLASSES:
        mistakes = totals - np.diag(confusion)
        kept = np.sort(np.argsort(-mistakes, kind="stable")[:_MOST_CLASSES])
        note = (
            f"The {_MOST_CLASSES} of {len(confusion)} classes with most mistakes; shares are of whole rows."
        )
    part, names = confusion[np.ix_(kept, kept)], [classes[int(i)] for i in kept]
    shares = part / np.maximum(totals[kept], 1e-300)[:, None]
    cell = 30 if len(kept) <= 24 else 20
    longest = min(max((len(name) for name in names), default=1), 20)
    side = round(longest * _LETTER_PX) + 12
    top = round(side * 0.8) + 22
    width, height = side + cell * len(kept) + round(side * 0.5), top + cell * len(kept) + 4
    cells = [
        _cell(part[row, column], shares[row, column], totals[kept[row]], names[row], names[column],
              side + column * cell, top + row * cell, cell, is_right=row == column)
        for row in range(len(kept))
        for column in range(len(kept))
        if part[row, column] > 0
    ]  # fmt: skip
    svg = tag(
        "svg",
        _frame(len(kept), side, top, cell),
        _labels(names, totals[kept], side, top, cell),
        *cells,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label="Confusion of classes; rows are the truth, columns the answers",
        class_="heat",
        style=f"width:{width}px",
    )
    small = tag("p", note, class_="note") if note else None
    return tag("div", tag("div", svg, class_="scroll"), small)


def _cell(
    number: float, share: float, total: float, truth: str, answer: str, x: int, y: int, side: int,
    *, is_right: bool,
) -> Html:  # fmt: skip
    words = "right" if is_right else f"answered {answer}"
    hint = f"{truth}: {words} {count(number)} of {count(total)} ({100 * share:.1f} %)"
    text = f"{100 * share:.0f}"
    shown = side >= 24 and share >= 0.005
    return tag(
        "g",
        tag("title", hint),
        tag("rect", x=x, y=y, width=side - 1, height=side - 1, fill=_shade(share, is_right=is_right)),
        tag(
            "text", text, x=f"{x + (side - 1) / 2:g}", y=f"{y + (side - 1) / 2:g}", dy="0.34em",
            text_anchor="middle", class_="light" if share > 0.45 else None,
        ) if shown else None,
    )  # fmt: skip


def _shade(share: float, *, is_right: bool) -> str:
    """White to dark; blue for right answers, vermilion for confusions, which also differ in place."""
    dark = (8, 74, 120) if is_right else (150, 52, 10)
    strength = 0.06 + 0.94 * min(max(share, 0.0), 1.0) ** 0.6
    red, green, blue = (round(255 + (end - 255) * strength) for end in dark)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _frame(classes: int, side: int, top: int, cell: int) -> Html:
    return tag("rect", x=side, y=top, width=cell * classes, height=cell * classes, fill="#f4f5f6")


def _labels(names: list[str], totals: Float64[np.ndarray, " n"], side: int, top: int, cell: int) -> Html:
    parts = [
        tag("text", "truth ↓   answer →", x=side - 6, y=12, text_anchor="end", class_="quiet")
        if side > 110
        else tag("text", "truth ↓ answer →", x=0, y=12, class_="quiet")
    ]
    for number, (name, total) in enumerate(zip(names, totals, strict=True)):
        cut = name if len(name) <= 20 else name[:19] + "…"
        middle = number * cell + (cell - 1) / 2
        hint = tag("title", f"{name}: {count(float(total))} in the truth")
        parts.append(
            tag("text", hint, cut, x=side - 6, y=f"{top + middle:g}", dy="0.34em", text_anchor="end")
        )
        place = f"translate({side + middle + 4:g} {top - 6}) rotate(-52)"
        parts.append(tag("text", tag("title", name), cut, transform=place))
    return tag("g", *parts, class_="names")


def class_table(confusion: Float64[np.ndarray, "c c"], classes: tuple[str, ...]) -> Html:
    """Accuracy (recall), precision, intersection over union and commonest mistake of each class."""
    truth, answered, right = confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)
    head = ("class", "in truth", "accuracy", "precision", "IoU", "most often taken for")
    rows = []
    for index, name in enumerate(classes):
        union = truth[index] + answered[index] - right[index]
        rows.append(
            tag(
                "tr",
                tag("th", name, scope="row"),
                tag("td", compact(truth[index]), class_="n", data_v=float(truth[index])),
                _share(right[index], truth[index]),
                _share(right[index], answered[index]),
                _share(right[index], union),
                tag("td", _commonest_mistake(confusion[index], index, classes)),
            )
        )
    heads = [tag("th", text, scope="col", class_=None if i in (0, 5) else "n") for i, text in enumerate(head)]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="sortable")
    return tag("div", table, class_="scroll tall")


def _share(part: float, whole: float) -> Html:
    if whole <= 0:
        return tag("td", "–", class_="n", data_v="-1")
    share = float(part / whole)
    bar = tag("i", class_="bar", style=f"width:{round(44 * share, 1):g}px")
    return tag("td", tag("span", bar, class_="rail"), f"{100 * share:.1f}", class_="n", data_v=f"{share:.6g}")


def _commonest_mistake(row: Float64[np.ndarray, " c"], index: int, classes: tuple[str, ...]) -> Html:
    others = row.copy()
    others[index] = 0
    worst = int(others.argmax())
    if others[worst] <= 0:
        return tag("span", "–", class_="quiet")
    share = tag("span", f" {100 * others[worst] / row.sum():.1f} %", class_="quiet")
    return group([classes[worst], share])


def names_for(confusion: Float64[np.ndarray, "c c"], *known: tuple[str, ...]) -> tuple[str, ...]:
    """The first of the `known` lists that has a name for each row, else `class 0`, `class 1`, ..."""
    for names in known:
        if len(names) == len(confusion):
            return names
    return tuple(f"class {index}" for index in range(len(confusion)))
