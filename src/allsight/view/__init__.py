"""All a person looks at: terminal progress and the HTML report. Reads run folders; needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allsight.view.events import read_events
    from allsight.view.progress import Progress
    from allsight.view.record import RunRecord, read_run
    from allsight.view.report import write_report
    from allsight.view.watch import watch_run

__all__ = ["Progress", "RunRecord", "read_events", "read_run", "watch_run", "write_report"]

_HOME = {
    "Progress": "progress",
    "RunRecord": "record",
    "read_events": "events",
    "read_run": "record",
    "watch_run": "watch",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"allsight.view.{_HOME[name]}"), name)
    raise AttributeError(f"module 'allsight.view' has no attribute {name!r}")
