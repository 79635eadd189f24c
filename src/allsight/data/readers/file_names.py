"""Names of files in folders and archives: which ones are passed over, and which ones are refused."""

from __future__ import annotations

_KEPT = ("__MACOSX", "lost+found")


def is_hidden(name: str) -> bool:
    """Whether a path holds a part that file systems and archivers keep for themselves."""
    return any((part.startswith(".") and part != ".") or part in _KEPT for part in name.split("/"))


def leads_outside(name: str) -> bool:
    """Whether a path is absolute (also as on Windows), climbs out with `..`, or is no possible name."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or ".." in plain.split("/") or "\0" in plain or plain[1:2] == ":"
