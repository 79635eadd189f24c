"""The resolved configuration and the environment, folded away."""

from __future__ import annotations

import json
from typing import Any

from allsight.view.markup import Html, tag
from allsight.view.record import RunRecord
from allsight.view.report.page import table


def settings(record: RunRecord) -> Html:
    """`resolved.yaml` as it is."""
    summary = tag("summary", "resolved configuration")
    return tag("details", summary, tag("pre", record.resolved))


def environment(record: RunRecord) -> Html:
    """`environment.json` as a table."""
    summary = tag("summary", "environment")
    rows = [[name, _plain(value)] for name, value in _flat(record.environment)]
    body = table(("what", "value"), rows, wide=(1,)) if rows else tag("p", "Not known.", class_="empty")
    return tag("details", summary, body)


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)
