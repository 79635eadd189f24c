"""`allsight report RUN`: one self-contained HTML file about a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from allsight.config import ConfigError
from allsight.view.heatmap import class_table, heat_map, names_for
from allsight.view.markup import Html, group, tag
from allsight.view.predictions import Kept, read_kept
from allsight.view.record import RunRecord, TaskRecord, read_run
from allsight.view.report.compare import comparison
from allsight.view.report.curves import curves
from allsight.view.report.experts import experts
from allsight.view.report.interference import interference
from allsight.view.report.monitors import monitors
from allsight.view.report.page import Section, page
from allsight.view.report.pictures import pictures
from allsight.view.report.probes import probes
from allsight.view.report.profile import profile
from allsight.view.report.settings import environment, settings
from allsight.view.report.speed import speed
from allsight.view.report.summary import header, tiles, trouble_link
from allsight.view.report.trouble import diary, num_warnings, warnings

__all__ = ["write_report"]


def write_report(run: Path, out: Path | None = None, *, compare: Sequence[Path] = ()) -> Path:
    """Write the report of a run, also of one that is still going on or was cut off.

    Args:
        run: Run folder.
        out: Where to write; None takes `report.html` in the run folder.
        compare: Other run folders, such as of the same tasks trained alone; the report compares main metrics
            at equally many samples of each task.
    Returns:
        The file that was written.
    Raises:
        ConfigError: Not a run folder, written by a newer allsight, or the report cannot be written.
    """
    record = read_run(run)
    others = [read_run(path) for path in compare]
    target = run / "report.html" if out is None else out
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.write_text(render(record, others), encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise ConfigError(f"{target}: the report cannot be written: {error.strerror or error}") from error
    return target


def render(record: RunRecord, others: Sequence[RunRecord] = ()) -> Html:
    """The report as HTML."""
    kept = {name: read_kept(record.folder, name) for name in record.tasks}
    problems = [*record.problems]
    for each in kept.values():
        problems += each.problems if each else ()
    for other in others:
        problems += [f"{other.name}: {text}" for text in other.problems]
    explained = _explained(record, problems)
    profiled = profile(record.folder, problems)
    sections = [Section("curves", "Curves", curves(record))]
    if others:
        sections.insert(0, Section("comparison", "Comparison", comparison(record, others)))
    for anchor, title, body in (
        ("monitors", "Monitors", monitors(record)),
        ("probes", "Probes of the features", probes(record)),
        ("interference", "Do the tasks help each other?", interference(record)),
        ("experts", "Experts", experts(record)),
    ):
        if body is not None:
            sections.append(Section(anchor, title, body))
    sections += [
        Section("pictures", "Validation pictures", _pictures(record, kept)),
        Section("confusion", "Confusion", _confusion(record, kept)),
        *explained,
        Section("time", "Time", speed(record)),
        *([] if profiled is None else [Section("profile", "Profile", profiled)]),
        Section("warnings", "Warnings", warnings(record, problems)),
    ]
    notes = diary(record)
    if notes is not None:
        sections.append(Section("notes", "Notes and checkpoints", notes))
    sections.append(Section("settings", "Settings", group([settings(record), environment(record)])))
    top = group([header(record), trouble_link(num_warnings(record, problems)) or Html(""), tiles(record)])
    return page(f"{record.name} · allsight", top, sections)


def _pictures(record: RunRecord, kept: dict[str, Kept | None]) -> Html:
    parts = [
        group([tag("h3", name), pictures(each, record.tasks[name])])
        for name, each in kept.items()
        if each is not None and each.samples
    ]
    return group(parts) if parts else _not_yet(record)


def _explained(record: RunRecord, problems: list[str]) -> list[Section]:
    """What `allsight predict RUN ... --explain` kept in the run folder."""
    folder = record.folder / "explained"
    if not folder.is_dir():
        return []
    # It needs torch, which nothing else of a report does.
    from allsight.view.explain.page import TITLE, body
    from allsight.view.explain.record import read_explanation

    try:
        found = read_explanation(folder)
    except ValueError as error:
        problems.append(str(error))
        return []
    return [] if found is None else [Section("explained", TITLE, body(found, folder))]


def _confusion(record: RunRecord, kept: dict[str, Kept | None]) -> Html:
    parts = [
        _one_confusion(record.tasks[name], each)
        for name, each in kept.items()
        if each is not None and each.confusion is not None and len(each.confusion)
    ]
    return group(parts) if parts else _not_yet(record)


def _one_confusion(task: TaskRecord, kept: Kept) -> Html:
    assert kept.confusion is not None
    classes = names_for(kept.confusion, kept.classes, task.classes)
    note = f"At step {kept.step:,}. Numbers are percent of the row, that is of the true class."
    return group(
        [
            tag("h3", task.name),
            tag("p", note, class_="note"),
            tag(
                "div", heat_map(kept.confusion, classes), class_table(kept.confusion, classes), class_="pair"
            ),
        ]
    )


def _not_yet(record: RunRecord) -> Html:
    if any(task.evaluations for task in record.tasks.values()):
        return tag("p", "This run kept none.", class_="empty")
    return tag("p", "Nothing has been evaluated yet.", class_="empty")
