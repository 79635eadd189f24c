"""An explanation as HTML: a section of the report, or a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from allsight.view.explain.plots import displacement_chart, points_chart, roofline_chart
from allsight.view.explain.record import Explanation
from allsight.view.explain.sampling import LayerStatistics
from allsight.view.figures import compact, percent
from allsight.view.markup import Html, data_uri, group, tag
from allsight.view.report.page import Section, charts, facts, page, table

TITLE = "What the backbone sees"
_MOST = 4
_WORDS = {
    "sampling": "Where the last layer of each stage reads for one place, the cross: dots are samples, their "
    "area is their weight. Below, samples of up to three layers one upon another, as dense as they count. "
    "Beyond the picture, on grey, all is zero; so much of the weight is lost there.",
    "displacement": "How far offsets move the samples of each stage's last layer, by weight.",
    "field": "Effective receptive field of the middle of each map: root mean square derivative by each "
    "pixel, logarithmic. Squares hold half and nine tenths of it.",
}


def body(found: Explanation, folder: Path) -> Html:
    """All there is to see, pictures inside."""
    parts = [tag("p", f"Weights: {found.weights}; pictures of task {found.task}.", class_="note")]
    for name, files in list(found.pictures.items())[:_MOST]:
        parts.append(tag("h3", name))
        parts += [_picture(folder / file, kind) for kind, file in files.items()]
    if len(found.pictures) > _MOST:
        parts.append(tag("p", f"{len(found.pictures) - _MOST} more in {folder.name}.", class_="note"))
    if found.field:
        parts += [tag("h3", "Effective receptive field"), _picture(folder / found.field, "field")]
    if found.layers:
        parts.append(tag("h3", "Deformable layers"))
        parts.append(charts([displacement_chart(found.layers), points_chart(found.layers)]))
        parts.append(_layers(found.layers))
    if found.peak is not None:
        parts.append(tag("h3", "Time against the roofline"))
        parts.append(charts([roofline_chart(found.peak, found.parts)]))
        parts.append(_times(found))
    return group(parts)


def own_page(found: Explanation, folder: Path, title: str) -> Html:
    """The page beside the files."""
    head = tag(
        "header",
        tag("p", "allsight explains", class_="over"),
        tag("h1", title),
        facts([("weights", found.weights), ("task", found.task), ("pictures", str(len(found.pictures)))]),
    )
    return page(f"{title} · allsight", head, [Section("explained", TITLE, body(found, folder))])


def _picture(file: Path, kind: str) -> Html:
    try:
        uri = data_uri(file.read_bytes(), "image/png")
    except OSError as error:
        return tag("p", f"{file.name} cannot be read: {error.strerror or error}", class_="empty")
    image = tag("img", src=uri, alt=_WORDS[kind], style="max-width:100%")
    return tag("figure", image, tag("figcaption", _WORDS[kind], class_="note"))


def _layers(layers: Sequence[LayerStatistics]) -> Html:
    head = ("stage", "stride", "layer", "median displacement", "reach", "points used", "outside")
    rows = [
        (
            str(each.stage),
            str(each.stride),
            each.name,
            f"{each.displacement_px[1]:.1f} px",
            f"{each.reach_px:.1f} px",
            f"{each.points_used:.2f}",
            percent(each.outside),
        )
        for each in layers
    ]
    note = (
        "Displacement and reach are in pixels of the picture: how far offsets move a sample, and how far "
        "from its place a sample is read (root mean square by weight). Outside: share of the weight beyond "
        "the map."
    )
    return group([table(head, rows, numbers=(0, 1, 3, 4, 5, 6)), tag("p", note, class_="note")])


def _times(found: Explanation) -> Html:
    assert found.peak is not None
    peak = found.peak
    head = ("part", "number", "time", "MFLOP", "MB", "GFLOP/s", "GB/s", "limit", "of attainable")
    rows = [
        (
            part.name,
            str(part.count),
            f"{1e3 * part.seconds:.2f} ms",
            f"{part.flops / 1e6:,.1f}",
            f"{part.bytes / 1e6:.2f}",
            f"{part.flops / part.seconds / 1e9:.1f}",
            f"{part.bytes / part.seconds / 1e9:.2f}",
            "memory" if part.flops / part.bytes < peak.ridge else "arithmetic",
            percent(part.attainable_s(peak) / part.seconds),
        )
        for part in found.parts
    ]
    note = (
        f"One picture of {found.hw_px[0]} x {found.hw_px[1]} px; each part alone, the first of its kind. "
        f"This machine reached {compact(peak.flops_per_s)}FLOP/s in a matrix product and "
        f"{compact(peak.bytes_per_s)}B/s in a copy, in the same turns. Bytes are what must be moved at "
        "least; small maps stay in the caches, whose rate is higher than that of the copy."
    )
    return group([table(head, rows, numbers=(1, 2, 3, 4, 5, 6, 8)), tag("p", note, class_="note")])
