"""The page around the sections: one file without anything from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from allsight.view.markup import Html, group, tag


@dataclass(frozen=True)
class Section:
    """A part of the page. `anchor` is its address in the page, `title` is in its heading and in the list of
    contents.
    """

    anchor: str
    title: str
    body: Html


def page(title: str, head: Html, sections: Sequence[Section]) -> Html:
    """The whole document."""
    links = [tag("a", section.title, href=f"#{section.anchor}") for section in sections]
    bodies = [
        tag("section", tag("h2", section.title), section.body, id=section.anchor) for section in sections
    ]
    content = tag("main", head, tag("nav", *links, aria_label="Contents"), *bodies)
    document = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", title),
            tag("style", _own("report.css")),
        ),
        tag("body", content, tag("script", _own("report.js"))),
        lang="en",
    )
    return group([Html("<!doctype html>\n"), document, Html("\n")])


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    wide: Sequence[int] = (),
) -> Html:
    """A table in a box of its own that scrolls where it is too wide.

    Args:
        head: Names of the columns.
        rows: Cells, plain text or Html.
        numbers: Columns that are set flush right.
        wide: Columns of running text, which may be broken into lines.
    """
    kinds = ["n" if i in numbers else "words" if i in wide else None for i in range(len(head))]
    heads = [tag("th", text, scope="col", class_=kind) for text, kind in zip(head, kinds, strict=True)]
    bodies = [
        tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *bodies)), class_="scroll")


def facts(pairs: Sequence[tuple[str, str | None]]) -> Html:
    """Terms and what they are, those without a value left out."""
    entries = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value]
    return tag("dl", *entries, class_="facts")


def charts(parts: Sequence[Html]) -> Html:
    """Charts side by side, as many as there is room for."""
    return tag("div", *parts, class_="charts")


def _own(name: str) -> Html:
    return Html(files("allsight.view.report").joinpath(name).read_text(encoding="utf-8"))
