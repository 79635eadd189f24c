"""What a model told about its own training: a chart for each kind of number, a line for each target."""

from __future__ import annotations

from allsight.view.charts import COLORS, Line, line_chart
from allsight.view.markup import Html, data_uri, group, tag
from allsight.view.pretraining import FILE
from allsight.view.record import RunRecord
from allsight.view.report.experts import MONITOR
from allsight.view.report.page import charts

_NOTES = {
    "loss": "before its weight; a dense loss also falls while its targets collapse",
    "target_std": "spread of the targets' directions; 1 fills the sphere, 0 is one point",
    "target_rank": "effective rank of the targets",
    "top_share": "largest eigenvalue of the targets' second moment, as a share",
    "std": "spread of the representation's directions",
    "rank": "effective rank of the representation",
    "information": "lower bound in nats; only its trend counts",
    "information_share": "the same as a share of the logarithm of the candidates",
    "gradient": "norm of the weighted loss's gradient at the representation",
    "gradient_share": "of the sum of all targets' norms",
    "cosine": "of two targets' gradients at the same pictures; below 0 they fight",
    "factor": "what the balancer makes of a target",
    "scale": "inverse temperature",
    "distance": "of slow copies from the weights, relative",
    "label": "share of rows that have one",
    "caption": "share of rows that have one",
}
_FIRST = ("std", "target_std", "top_share", "rank", "target_rank", "loss", "gradient_share", "cosine")
_MOST_OPEN = 9
_MOST_LINES = 12


def monitors(record: RunRecord) -> Html | None:
    """Charts of the monitors, those that show a collapse first; None without any."""
    shown = {name: series for name, series in record.monitors.items() if not MONITOR.search(name)}
    if not shown:
        return None
    span = (0.0, float(record.steps_done))
    kinds: dict[str, dict[str, Line]] = {}
    for name, series in shown.items():
        owner, _, kind = name.rpartition("/")
        if kind not in _NOTES:
            # Other models put the kind first.
            kind, _, owner = name.partition("/")
        lines = kinds.setdefault(kind, {})
        if len(lines) == _MOST_LINES:
            continue
        color = COLORS[len(lines) % len(COLORS)]
        lines[owner] = Line(owner, series.x(), series.y(), color, "dots" if len(series) < 20 else "line")
    order = [*(kind for kind in _FIRST if kind in kinds), *(kind for kind in kinds if kind not in _FIRST)]
    parts = [
        line_chart(kind, list(kinds[kind].values()), x_range=span, note=_NOTES.get(kind, ""))
        for kind in order
    ]
    alarms = record.of_kind("alarm")
    words = f"{len(alarms)} alarms, below under Warnings." if alarms else "No alarm."
    more = tag("details", tag("summary", f"{len(parts) - _MOST_OPEN} more"), charts(parts[_MOST_OPEN:]))
    return group(
        [
            tag("p", words, class_="note"),
            _sheet(record),
            charts(parts[:_MOST_OPEN]),
            more if len(parts) > _MOST_OPEN else Html(""),
        ]
    )


def _sheet(record: RunRecord) -> Html:
    """Inputs, targets and predictions, where they were drawn."""
    try:
        content = (record.folder / FILE).read_bytes()
    except OSError:
        return Html("")
    about = "Inputs mixed of two views, and for each target what is to be predicted from them, and what was."
    picture = tag("img", src=data_uri(content, "image/png"), alt=about, style="max-width: 100%")
    return tag("figure", picture, tag("figcaption", about))
