"""What went wrong or was decided: alarms, corrupt samples, restarts, notes."""

from __future__ import annotations

import re

from allsight.view.events import Event
from allsight.view.figures import clock, count, moment, size
from allsight.view.markup import Html, group, tag
from allsight.view.record import RunRecord
from allsight.view.report.page import table

_MOST_ROWS = 60
_CORRUPT = re.compile(r"^(?P<id>.*?): (?P<reason>.*?)(?:; (?P<fate>[^;]*))?$", re.DOTALL)


def num_warnings(record: RunRecord, problems: list[str]) -> int:
    """Alarms, corrupt samples, restarts and unreadable parts together."""
    kinds = ("alarm", "data", "restart")
    return sum(len(record.of_kind(kind)) for kind in kinds) + len(problems)


def warnings(record: RunRecord, problems: list[str]) -> Html:
    """Tables of all of them; a plain `None.` where there was nothing."""
    parts = []
    if problems:
        parts += [tag("h3", "reading this run"), tag("ul", *(tag("li", text) for text in problems))]
    alarms, corrupt, restarts = (record.of_kind(kind) for kind in ("alarm", "data", "restart"))
    if alarms:
        parts += [tag("h3", "alarms"), _alarms(alarms)]
    if corrupt:
        parts += [tag("h3", "corrupt samples"), _corrupt(corrupt)]
    if restarts:
        again = f"{count(record.repeated_steps)} steps ({clock(record.repeated_seconds)}) were done again."
        rows = [[count(event["step"]), moment(event["time"]), event["text"]] for event in restarts]
        parts += [tag("h3", "restarts"), table(("step", "time", "what"), rows, numbers=(0,), wide=(2,))]
        parts.append(tag("p", again, class_="note") if record.repeated_steps else Html(""))
    return group(parts) if parts else tag("p", "None.", class_="empty")


def diary(record: RunRecord) -> Html | None:
    """Notes and checkpoints; None if there are neither."""
    parts = []
    notes, saved = record.of_kind("note"), record.of_kind("checkpoint")
    if notes:
        rows = [[count(event["step"]), _of_task(event), event["text"]] for event in notes[:_MOST_ROWS]]
        parts += [
            tag("h3", "notes"),
            table(("step", "task", "note"), rows, numbers=(0,), wide=(2,)),
            _left_out(len(notes)),
        ]
    if saved:
        rows = [
            [count(event["step"]), tag("code", event["text"]), size(event["values"].get("bytes", 0.0)),
             clock(event["values"].get("seconds", 0.0))]
            for event in saved[-8:]
        ]  # fmt: skip
        words = f"{len(saved)} written" + (", the last 8 are shown" if len(saved) > 8 else "")
        parts += [
            tag("h3", "checkpoints"),
            table(("step", "folder", "size", "took"), rows, numbers=(0, 2, 3)),
            tag("p", f"{words}; older ones may have been removed since.", class_="note"),
        ]
    return group(parts) if parts else None


def _alarms(alarms: list[Event]) -> Html:
    rows = [[count(event["step"]), _of_task(event), event["text"]] for event in alarms[:_MOST_ROWS]]
    return group([table(("step", "task", "alarm"), rows, numbers=(0,), wide=(2,)), _left_out(len(alarms))])


def _corrupt(corrupt: list[Event]) -> Html:
    rows = []
    for event in corrupt[:_MOST_ROWS]:
        found = _CORRUPT.match(event["text"])
        ident, reason, fate = (
            (found["id"], found["reason"], found["fate"]) if found else ("", event["text"], "")
        )
        rows.append([count(event["step"]), _of_task(event), tag("code", ident), reason, fate or "–"])
    head = ("step", "task", "sample", "reason", "what was done")
    return group(
        [table(head, rows, numbers=(0,), wide=(3,)), _left_out(len(corrupt)), _corrupt_share(corrupt)]
    )


def _corrupt_share(corrupt: list[Event]) -> Html | None:
    """Corrupt of seen samples for each task, where the run said so."""
    last = {event["task"]: event["values"] for event in corrupt if event["values"].get("seen")}
    words = [
        f"{task}: {count(values.get('corrupt', 0.0))} of {count(values['seen'])} samples seen"
        for task, values in last.items()
    ]
    return tag("p", "; ".join(words), class_="note") if words else None


def _left_out(number: int) -> Html | None:
    if number <= _MOST_ROWS:
        return None
    return tag("p", f"{count(number - _MOST_ROWS)} more are in events.jsonl.", class_="note")


def _of_task(event: Event) -> str:
    return event["task"] or "–"
